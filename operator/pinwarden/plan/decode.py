"""Read the values of `types` from API objects. A missing field reads as empty.

The name of a pod's cgroup has the pod's UID, which the API server chooses and which never changes.
The name of a static pod's cgroup has the hash of its configuration, which its mirror pod has in an
annotation. An author can create a pod with that annotation and with the owner of a mirror pod. An
author can also give any pod `kubernetes.io/config.hash` at any time, but cannot write the status.
So a hash counts only if all of these are present:

- `kubernetes.io/config.mirror` with 32 hexadecimal digits. It cannot be added or changed later, and
  no UID of the API server looks like it.
- The owner that the API server requires of mirror pods: the pod's own Node, as controller.
- The id of a container in the status. Kubelets report it only for pods that they run.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pinwarden.plan.group_allowlist import ANNOTATION
from pinwarden.plan.types import WINDOWS, Namespace, Node, Pod

AGENT_SELECTOR = "app.kubernetes.io/name=pinwarden,app.kubernetes.io/component=agent"
"""Selects the pods of the node agent."""
_MIRROR = "kubernetes.io/config.mirror"
_HASH = re.compile(r"[0-9a-f]{32}")
_AGENT = "agent"
_TERMINAL = ("Succeeded", "Failed")

Json = Mapping[str, Any]


def read_pod(raw: Json) -> Pod:
    """Return a pod; the cgroup of a static pod has the hash of its configuration."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    uid = metadata["uid"]
    containers: dict[str, str | None] = {
        container["name"]: None
        for part in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(part) or ()
    }
    running = False
    for part in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for container in status.get(part) or ():
            containers[container["name"]] = identity = _container_id(container.get("containerID"))
            running = running or (
                identity is not None and not _stopped(container.get("state") or {})
            )
    return Pod.of(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=uid,
        cgroup_uid=(_static_hash(metadata, spec) if any(containers.values()) else "") or uid,
        node=spec.get("nodeName") or "",
        labels=metadata.get("labels") or {},
        containers=containers,
        terminal=status.get("phase") in _TERMINAL,
        windows=(spec.get("os") or {}).get("name") == WINDOWS,
        running=running,
    )


def _static_hash(metadata: Json, spec: Json) -> str:
    """Return the hash that a mirror pod names, empty if the pod cannot be a mirror pod."""
    named = str((metadata.get("annotations") or {}).get(_MIRROR) or "")
    node = ("Node", spec.get("nodeName"), True)
    owners = (
        (owner.get("kind"), owner.get("name"), owner.get("controller"))
        for owner in metadata.get("ownerReferences") or ()
    )
    return named if _HASH.fullmatch(named) and node in owners else ""


def agent_is_ready(raw: Json) -> bool:
    """Return whether the `agent` container of a pod of the node agent is ready.

    The agent itself reports a missing gate or accountant. On a lost node (`is_lost`) the answer
    means nothing, because the last report of the kubelet stays.
    """
    status = raw.get("status") or {}
    ready = _has_condition(status, "Ready", "True")
    for container in status.get("containerStatuses") or ():
        if container["name"] == _AGENT:
            ready = container["ready"]
    return ready and "deletionTimestamp" not in raw["metadata"]


def read_agent(raw: Json) -> tuple[str, bool]:
    """Return the node of a pod of the node agent, and whether the agent is alive."""
    return raw["spec"].get("nodeName") or "", agent_is_ready(raw)


def agents_by_node(agents: Iterable[tuple[str, bool]], lost: Collection[str]) -> dict[str, bool]:
    """Return whether each node has a live agent; during an update a node may have two agents."""
    alive: dict[str, bool] = {}
    for node, ready in agents:
        alive[node] = (alive.get(node, False) or ready) and node not in lost
    return alive


def is_lost(raw: Json) -> bool:
    """Return whether the node is lost: then its controller sets the condition Ready to Unknown."""
    return _has_condition(raw.get("status") or {}, "Ready", "Unknown")


def read_node(raw: Json) -> Node:
    """Return a node."""
    metadata = raw["metadata"]
    return Node(metadata["name"], metadata.get("labels") or {})


def read_namespace(raw: Json) -> Namespace:
    """Return a namespace."""
    metadata = raw["metadata"]
    return Namespace(
        metadata["name"],
        metadata.get("labels") or {},
        allowed=(metadata.get("annotations") or {}).get(ANNOTATION, ""),
        terminating="deletionTimestamp" in metadata,
    )


def _has_condition(status: Json, kind: str, value: str) -> bool:
    conditions = status.get("conditions") or ()
    return any(
        (condition["type"], condition["status"]) == (kind, value) for condition in conditions
    )


def _stopped(state: Json) -> bool:
    """Return whether a container with this state has ended, or waits for its next start."""
    return "terminated" in state or "waiting" in state


def _container_id(text: str | None) -> str | None:
    """Return `containerd://0123...` without the runtime's name, as in the name of the cgroup."""
    return text.rpartition("//")[2] or None if text else None
