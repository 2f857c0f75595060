"""The kept fields of pods, nodes and NodePinConfigs."""

from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodePinConfigSpec, NodePod
from pinwarden.controller import transform


def pod(**parts: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "ns", "uid": "u1", **parts.pop("metadata", {})}
    spec = {
        "nodeName": "n1",
        "containers": [{"name": "main", "image": "i"}],
        **parts.pop("spec", {}),
    }
    return {"metadata": metadata, "spec": spec, **parts}


def test_transform_pod_keeps_the_fields_of_the_rules() -> None:
    key, kept = transform.pod(
        pod(
            metadata={"labels": {"app": "db"}},
            spec={"initContainers": [{"name": "first"}]},
            status={
                "phase": "Running",
                "containerStatuses": [{"name": "main", "containerID": "containerd://abc"}],
                "initContainerStatuses": [{"name": "first", "containerID": ""}],
            },
        )
    )
    assert (key, kept.uid, kept.cgroup_uid, kept.node) == ("u1", "u1", "u1", "n1")
    assert kept.labels == {"app": "db"}
    assert kept.containers == {"first": None, "main": "abc"}
    assert not kept.terminal


HASH = "0123456789abcdef" * 2
MIRROR = "kubernetes.io/config.mirror"
OWNER = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "node-uid", "controller": True}
STARTED = {"containerStatuses": [{"name": "main", "containerID": "containerd://abc"}]}


def mirror(annotations: Any = None, owner: Any = OWNER, status: Any = STARTED) -> dict[str, Any]:
    metadata = {"annotations": annotations or {MIRROR: HASH}, "ownerReferences": [owner]}
    return pod(metadata=metadata, status=status)


def test_transform_static_pod_has_the_hash_of_its_configuration() -> None:
    key, kept = transform.pod(mirror())
    assert (key, kept.uid, kept.cgroup_uid) == ("u1", "u1", HASH)


@pytest.mark.rule("P1")
@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(
            mirror({"kubernetes.io/config.hash": HASH}), id="an annotation that any user may set"
        ),
        pytest.param(mirror(status={}), id="a mirror that no kubelet started"),
        pytest.param(mirror(owner=OWNER | {"name": "n2"}), id="a mirror of another node"),
        pytest.param(mirror(owner=OWNER | {"kind": "ReplicaSet"}), id="a mirror that no node owns"),
        pytest.param(
            mirror(owner=OWNER | {"controller": False}), id="a mirror that no node controls"
        ),
        pytest.param(
            mirror({MIRROR: "11111111-2222-4333-8444-555555555555"}), id="another pod's UID"
        ),
        pytest.param(mirror({MIRROR: "x" * 65}), id="a long annotation"),
        pytest.param(mirror({MIRROR: ""}), id="an empty annotation"),
    ],
)
def test_transform_forged_mirror_pod_has_its_own_uid(forged: dict[str, Any]) -> None:
    """See vectordotdev/vector#6001 and kubernetes/kubernetes#123149 on GitHub."""
    assert transform.pod(forged)[1].cgroup_uid == "u1"


@pytest.mark.parametrize(
    ("state", "running"),
    [
        ({"state": {"running": {"startedAt": "2026-11-29T00:00:00Z"}}}, True),
        ({}, True),
        ({"state": {"waiting": {"reason": "CrashLoopBackOff"}}}, False),
        ({"state": {"terminated": {"exitCode": 1}}}, False),
        ({"containerID": "", "state": {"waiting": {}}}, False),
        ({"containerID": ""}, False),
    ],
)
def test_transform_pod_is_running_while_a_container_runs(
    state: dict[str, Any], running: bool
) -> None:
    status = {"name": "main", "containerID": "containerd://1a"} | state
    ended = {"name": "init", "containerID": "containerd://2b", "state": {"terminated": {}}}
    raw = pod(status={"initContainerStatuses": [ended], "containerStatuses": [status]})
    assert transform.pod(raw)[1].running is running


def test_transform_ephemeral_container_is_known_before_its_start() -> None:
    raw = pod(spec={"ephemeralContainers": [{"name": "debugger"}]})
    assert transform.pod(raw)[1].containers["debugger"] is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_transform_ended_pod_is_terminal(phase: str) -> None:
    assert transform.pod(pod(status={"phase": phase}))[1].terminal


@pytest.mark.parametrize(
    ("os", "windows"), [(None, False), ({"name": "linux"}, False), ({"name": "windows"}, True)]
)
def test_transform_pod_for_windows_is_marked(os: dict[str, str] | None, windows: bool) -> None:
    assert transform.pod(pod(spec={"os": os}))[1].windows == windows


@pytest.mark.parametrize(
    ("status", "leaving", "ready"),
    [
        ("True", False, True),
        ("False", False, False),
        ("Unknown", False, False),
        ("True", True, False),
    ],
)
def test_transform_agent_is_ready_while_its_pod_is_ready_and_not_deleted(
    status: str, leaving: bool, ready: bool
) -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaving else {}
    raw = pod(metadata=metadata, status={"conditions": [{"type": "Ready", "status": status}]})
    assert transform.agent_pod(raw)[1] == transform.AgentPod("u1", "n1", ready)
    assert not transform.agent_pod(pod())[1].ready


@pytest.mark.rule("H1")
def test_transform_agent_is_ready_without_its_other_containers() -> None:
    def status(agent: bool, accountant: bool) -> dict[str, Any]:
        containers = [
            {"name": "agent", "ready": agent},
            {"name": "accountant", "ready": accountant},
        ]
        return {
            "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": containers,
        }

    assert transform.agent_pod(pod(status=status(True, False)))[1].ready
    assert not transform.agent_pod(pod(status=status(False, True)))[1].ready


@pytest.mark.rule("H1")
def test_transform_node_with_ready_unknown_is_lost() -> None:
    """A node with Ready=False is not lost: its kubelet reports."""

    def lost(status: dict[str, Any]) -> bool:
        return transform.node({"metadata": {"name": "n1", "uid": "u1"}, "status": status})[1].lost

    found = {
        status: lost(
            {
                "conditions": [
                    {"type": "DiskPressure", "status": "Unknown"},
                    {"type": "Ready", "status": status},
                ]
            }
        )
        for status in ("True", "False", "Unknown")
    }
    assert found == {"True": False, "False": False, "Unknown": True}
    assert not lost({})


def config(spec: Any, owner: str = "node-uid") -> dict[str, Any]:
    owners = [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": owner}]
    metadata = {
        "name": "n1",
        "uid": "c1",
        "generation": 3,
        "ownerReferences": owners,
        "managedFields": [1],
    }
    return {"metadata": metadata, "spec": spec}


def test_digest_of_written_and_stored_spec_is_the_same() -> None:
    spec = NodePinConfigSpec(pods=[NodePod(uid="u1")]).to_wire()
    name, stored = transform.node_pin_config(config(dict(reversed(spec.items()))))
    assert name == "n1"
    assert stored.digest == transform.digest_of(transform.canonical(spec), "node-uid")
    assert (stored.uid, stored.generation) == ("c1", 3)
    assert "managedFields" not in stored.config["metadata"]


def test_digest_of_changed_owner_or_spec_differs() -> None:
    spec = NodePinConfigSpec().to_wire()
    variants = [
        config(spec),
        config(spec, "other"),
        config({**spec, "unknownPods": 0}),
        config(None),
    ]
    assert len({transform.node_pin_config(variant)[1].digest for variant in variants}) == len(
        variants
    )
