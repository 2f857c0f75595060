"""Which pods hold uninstalling up, and when a node has drained."""

from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.controller.uninstall import _draining, _is_gated, _made, _undrained

PROFILE = {"seccompProfile": {"type": "Localhost", "localhostProfile": "pinwarden/unconfined-v1.json"}}
OTHER = {"seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/pinwarden/x.json"}}


@pytest.mark.parametrize(
    ("spec", "gated"),
    [
        ({"containers": [{"name": "a"}]}, False),
        ({"securityContext": PROFILE, "containers": [{"name": "a"}]}, True),
        (
            {"containers": [{"name": "a", "securityContext": {}}, {"name": "b", "securityContext": PROFILE}]},
            True,
        ),
        (
            {"containers": [{"name": "a"}], "initContainers": [{"name": "b", "securityContext": PROFILE}]},
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
    ],
)
def test_a_pod_is_gated_by_any_container(spec: dict[str, Any], gated: bool) -> None:
    assert _is_gated({"spec": spec}) == gated
    assert _is_gated({"spec": spec, "status": {"phase": "Running"}}) == gated
    assert not _is_gated({"spec": spec, "status": {"phase": "Succeeded"}})


def test_only_what_pinwarden_made_and_shall_not_leave_drains() -> None:
    def group(uid: str, **spec: str) -> dict[str, Any]:
        return {"metadata": {"uid": uid}, "spec": spec}

    groups = [
        group("made", management="Create"),
        group("left", management="Create", deletionPolicy="Orphan"),
        group("found", management="Adopt"),
        group("silent"),
    ]
    assert _made(groups) == {"made"}
    spec = {"mode": "Active", "groups": [{"uid": "made"}, {"uid": "found"}]}
    assert _draining({"spec": spec}, _made(groups)) == {
        "mode": "Active",
        "groups": [{"uid": "made", "draining": True}, {"uid": "found"}],
    }
    assert _draining({"spec": {"mode": "Active"}}, _made(groups)) is None


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
    raw = {"apiVersion": "pinwarden.io/v1alpha1", "metadata": {"name": "n"}, "spec": {"groups": [group]}}
    made = NodePinConfig.model_validate(raw)
    if report is None:
        return made
    own = {"uid": "made", "hash": made.spec.groups[0].hash} | report
    return NodePinConfig.model_validate(raw | {"status": {"groups": [own]}})


def test_a_released_group_is_not_waited_for() -> None:
    assert list(_undrained(config({"phase": "Released"}))) == []


@pytest.mark.parametrize(
    ("report", "why", "stays"),
    [
        (None, "the node does not report it", False),
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
def test_one_that_stays_is_told_with_its_reason(report: dict[str, Any] | None, why: str, stays: bool) -> None:
    assert list(_undrained(config(report))) == [("team/cache", why, stays)]
