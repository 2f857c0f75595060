"""Blockers of an uninstallation, drained groups, and finalizers."""

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
def test_is_gated_any_container_with_the_profile_is_enough(
    spec: dict[str, Any], gated: bool
) -> None:
    assert is_gated({"spec": spec}) == gated
    assert is_gated({"spec": spec, "status": {"phase": "Running"}}) == gated
    assert not is_gated({"spec": spec, "status": {"phase": "Succeeded"}})


def test_draining_includes_only_created_groups_without_orphan_policy() -> None:
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


def test_remaining_groups_released_group_is_left_out() -> None:
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
def test_remaining_groups_unreleased_group_has_its_reason(
    report: dict[str, Any] | None, why: str, stays: bool
) -> None:
    assert list(remaining_groups(config(report))) == [("team/cache", why, stays)]


def test_finalizer_removal_keeps_other_finalizers() -> None:
    assert finalizer_removal("b", "uid", ("a", "b", "c"))[1:] == [
        {"op": "test", "path": "/metadata/finalizers", "value": ["a", "b", "c"]},
        {"op": "replace", "path": "/metadata/finalizers", "value": ["a", "c"]},
    ]


class RejectingServer:
    """A fake API server that rejects the first patches with 422."""

    def __init__(self, rejected: int) -> None:
        self.left = rejected
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
    ("rejected", "patches", "fails"), [(0, 1, False), (2, 3, False), (100, 6, True)]
)
def test_remove_finalizer_of_changed_group_retries_and_at_last_raises(
    rejected: int, patches: int, fails: bool
) -> None:
    api = RejectingServer(rejected)
    work = Uninstaller(cast(Api, api), UninstallOptions("ns", 1.0, GatedPods.REFUSE), print)
    if fails:
        with pytest.raises(ApiError, match="it was changed"):
            asyncio.run(work._remove_finalizer(GROUP))
    else:
        asyncio.run(work._remove_finalizer(GROUP))
    assert api.patched == patches
