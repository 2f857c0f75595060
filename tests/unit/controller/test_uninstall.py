"""Which pods hold uninstalling up, and when a node has drained."""

import asyncio
from typing import Any, cast

import pytest

from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.controller.client import Api, ApiError
from pinwarden.controller.finalizers import finalizer_removal
from pinwarden.controller.uninstall.blockers import (
    created_uids,
    draining,
    is_gated,
    remaining_groups,
)
from pinwarden.controller.uninstall.uninstall import GatedPods, Uninstaller, UninstallOptions
from pinwarden.plan.group_compiler import FINALIZER

PROFILE = {
    "seccompProfile": {"type": "Localhost", "localhostProfile": "pinwarden/unconfined-v1.json"}
}
SPELT = {
    "seccompProfile": {
        "type": "Localhost",
        "localhostProfile": ".//pinwarden/./runtime-default-v2.json",
    }
}
OTHER = {"seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/pinwarden/x.json"}}


@pytest.mark.parametrize(
    ("spec", "gated"),
    [
        ({"containers": [{"name": "a"}]}, False),
        ({"securityContext": PROFILE, "containers": [{"name": "a"}]}, True),
        (
            {
                "containers": [
                    {"name": "a", "securityContext": {}},
                    {"name": "b", "securityContext": PROFILE},
                ]
            },
            True,
        ),
        (
            {
                "containers": [{"name": "a"}],
                "initContainers": [{"name": "b", "securityContext": PROFILE}],
            },
            True,
        ),
        (
            {
                "containers": [{"name": "a"}],
                "ephemeralContainers": [{"name": "b", "securityContext": PROFILE}],
            },
            True,
        ),
        ({"containers": [{"name": "a", "securityContext": OTHER}]}, False),
        ({"containers": [{"name": "a", "securityContext": SPELT}]}, True),
    ],
)
def test_a_pod_is_gated_by_any_container(spec: dict[str, Any], gated: bool) -> None:
    assert is_gated({"spec": spec}) == gated
    assert is_gated({"spec": spec, "status": {"phase": "Running"}}) == gated
    assert not is_gated({"spec": spec, "status": {"phase": "Succeeded"}})


def test_only_what_pinwarden_made_and_shall_not_leave_drains() -> None:
    def group(uid: str, **spec: str) -> dict[str, Any]:
        return {"metadata": {"uid": uid}, "spec": spec}

    groups = [
        group("made", management="Create"),
        group("left", management="Create", deletionPolicy="Orphan"),
        group("found", management="Adopt"),
        group("silent"),
    ]
    assert created_uids(groups) == {"made"}
    groups_there = [{"uid": "made"}, {"uid": "found"}]
    assert draining(
        {"spec": {"mode": "Release", "groups": groups_there}}, created_uids(groups)
    ) == {
        "mode": "Active",
        "groups": [{"uid": "made", "draining": True}],
    }
    assert draining({"spec": {"mode": "Active"}}, created_uids(groups)) is None
    assert draining({"spec": {"groups": [{"uid": "found"}]}}, created_uids(groups)) is None


def config(report: dict[str, Any] | None) -> NodePinConfig:
    group = {
        "name": "team/cache",
        "uid": "made",
        "backing": {"tmpfs": {}},
        "management": "Create",
        "accounting": "Borrow",
        "fairShare": "Borrow",
        "draining": True,
    }
    raw = {
        "apiVersion": "pinwarden.io/v1alpha1",
        "metadata": {"name": "n"},
        "spec": {"groups": [group]},
    }
    asked = NodePinConfig.model_validate(raw)
    if report is None:
        return asked
    own = {"uid": "made", "hash": asked.spec.groups[0].hash} | report
    return NodePinConfig.model_validate(raw | {"status": {"groups": [own]}})


def test_a_released_group_is_not_waited_for() -> None:
    assert list(remaining_groups(config({"phase": "Released"}))) == []


@pytest.mark.parametrize(
    ("report", "why", "stays"),
    [
        (None, "the node does not report the group", False),
        ({"phase": "Released", "hash": "of an older"}, "", False),
        ({"phase": "Active"}, "", False),
        (
            {"phase": "Draining", "reason": "InUse", "message": "it waits for db (pid 7)"},
            "it waits for db (pid 7)",
            True,
        ),
        ({"phase": "Draining", "reason": "NotRemoved", "message": "busy"}, "busy", True),
        ({"phase": "Pending", "reason": "AccountantAway", "hash": ""}, "AccountantAway", False),
    ],
)
def test_one_that_stays_is_told_with_its_reason(
    report: dict[str, Any] | None, why: str, stays: bool
) -> None:
    assert list(remaining_groups(config(report))) == [("team/cache", why, stays)]


def test_a_finalizer_goes_whoever_set_it_and_the_others_stay() -> None:
    assert finalizer_removal("b", "uid", ("a", "b", "c"))[1:] == [
        {"op": "test", "path": "/metadata/finalizers", "value": ["a", "b", "c"]},
        {"op": "replace", "path": "/metadata/finalizers", "value": ["a", "c"]},
    ]


class Refusing:
    """An API server that refuses so many patches with 422."""

    def __init__(self, refused: int) -> None:
        self.left = refused
        self.patched = 0

    async def patch(self, path: str, body: object) -> None:
        self.patched += 1
        if self.left:
            self.left -= 1
            raise ApiError("it was changed", 422)

    async def get(self, path: str) -> dict[str, Any]:
        return GROUP


GROUP = {
    "metadata": {
        "namespace": "team",
        "name": "cache",
        "uid": "u",
        "finalizers": ["other", FINALIZER],
    }
}


@pytest.mark.parametrize(
    ("refused", "patches", "fails"), [(0, 1, False), (2, 3, False), (100, 6, True)]
)
def test_a_group_that_is_changed_meanwhile_is_remove_finalizer_and_one_that_cannot_be_changed_is_told(
    refused: int, patches: int, fails: bool
) -> None:
    api = Refusing(refused)
    work = Uninstaller(cast(Api, api), UninstallOptions("ns", 1.0, GatedPods.REFUSE), print)
    if fails:
        with pytest.raises(ApiError, match="it was changed"):
            asyncio.run(work._remove_finalizer(GROUP))
    else:
        asyncio.run(work._remove_finalizer(GROUP))
    assert api.patched == patches
