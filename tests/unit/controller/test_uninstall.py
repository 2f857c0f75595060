"""Blockers of an uninstallation, drained groups, and finalizers."""

import asyncio
from typing import Any, cast

import pytest

from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.controller.client import Api, ApiError
from pinwarden.controller.finalizers import finalizer_removal
from pinwarden.controller.uninstall.blockers import (
    GatedPod,
    created_uids,
    draining,
    few,
    gated_pod,
    refusal,
    released,
    remaining_groups,
    reported_gated,
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
def test_gated_pod_any_container_with_the_profile_is_enough(
    spec: dict[str, Any], gated: bool
) -> None:
    expected = GatedPod("team/db", True) if gated else None
    assert gated_pod(pod(spec), ()) == expected
    assert gated_pod(pod(spec, {"phase": "Running"}), ()) == expected
    assert gated_pod(pod(spec, {"phase": "Succeeded"}), ()) is None


def pod(spec: Any, status: Any = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": "db", "uid": "u-1", **metadata},
        "spec": {"nodeName": "n-1", **spec},
        "status": status or {},
    }


REPORTED = frozenset({("n-1", "u-1"), ("n-1", "d" * 32)})
PLAIN = {"containers": [{"name": "a"}]}
BY_NRI = GatedPod("team/db", False)


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (pod(PLAIN), BY_NRI),
        (pod(PLAIN, {"phase": "Running"}, deletionTimestamp="2026-01-01T00:00:00Z"), BY_NRI),
        (pod(PLAIN, {"phase": "Failed"}), None),
        (pod(PLAIN, uid="another"), None),
        (pod(PLAIN | {"nodeName": "another"}), None),
        (pod({"securityContext": PROFILE, **PLAIN}), GatedPod("team/db", True)),
    ],
    ids=["running", "terminating", "ended", "another pod", "another node", "profile"],
)
def test_gated_pod_is_found_by_the_report_of_its_node(
    raw: dict[str, Any], expected: GatedPod | None
) -> None:
    assert gated_pod(raw, REPORTED) == expected


def test_gated_static_pod_is_reported_by_the_hash_of_its_configuration() -> None:
    mirror = pod(
        PLAIN,
        {"containerStatuses": [{"name": "a", "containerID": "containerd://c"}]},
        uid="u-2",
        annotations={"kubernetes.io/config.mirror": "d" * 32},
        ownerReferences=[{"kind": "Node", "name": "n-1", "controller": True}],
    )
    assert gated_pod(mirror, REPORTED) == BY_NRI


@pytest.mark.rule("H2")
def test_report_without_gated_pods_names_none() -> None:
    metadata = {"name": "n-1"}
    silent: list[Any] = [None, {}, {"gatedPods": []}]
    for status in silent:
        assert list(reported_gated({"metadata": metadata, "status": status})) == []
    config = {"metadata": metadata, "status": {"gatedPods": ["a", "b"]}}
    assert list(reported_gated(config)) == [("n-1", "a"), ("n-1", "b")]


def test_refusal_says_for_each_kind_of_gated_pod_what_to_do() -> None:
    by_profile = GatedPod("team/labelled", True)
    both = refusal([BY_NRI, by_profile])
    assert both.startswith("2 pods would lose the gate.")
    for text in ("NRI plugin: team/db.", "gate.mode=Off", "a profile: team/labelled.", "=Break"):
        assert text in both
    assert "gate.mode" not in refusal([by_profile])
    assert "pinwarden.io/gate" not in refusal([BY_NRI])


def test_few_names_some_and_counts_the_others() -> None:
    names = [str(number) for number in range(22)]
    assert few(names[:20]) == ", ".join(names[:20])
    assert few(names).endswith("18, 19 and 2 more")


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
        "limitedNamespaces": [],
    }
    assert draining({"spec": {"mode": "Active"}}, created_uids(groups)) is None
    assert draining({"spec": {"groups": [{"uid": "found"}]}}, created_uids(groups)) is None


def test_released_spec_keeps_groups_and_no_limits() -> None:
    groups = [{"uid": "made", "draining": True}]
    config = {"spec": {"mode": "Active", "limits": [{}], "pods": [{}], "groups": groups}}
    assert released(config) == {"mode": "Release", "groups": groups}
    assert released({}) == {"mode": "Release", "groups": []}


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
