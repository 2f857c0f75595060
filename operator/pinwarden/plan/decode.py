"""From objects as the API server writes them to the values that the rules read (`world`).

Nothing here fails on a field that is missing: what is not there is read as empty.

A pod's cgroup bears the pod's UID, which the API server chooses and nobody can change. A static pod's cgroup bears the hash of its
configuration, which its mirror pod has in an annotation. An author can create a pod with that annotation and with the owner of a mirror
pod, and can give each pod `kubernetes.io/config.hash` at any time. The author cannot write the status. So a hash counts only with all of:

- `kubernetes.io/config.mirror`, which cannot be added or changed later, with 32 hexadecimal digits: no UID of the API server looks so;
- the owner that the API server demands of each mirror pod that a kubelet creates: the pod's own Node, as controller;
- the id of a container in the status, which kubelets report of static pods and of ordinary ones, and of no other pod.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pinwarden.plan.group_allowlist import ANNOTATION
from pinwarden.plan.types import WINDOWS, Namespace, Node, Pod

AGENT_SELECTOR = "app.kubernetes.io/name=pinwarden,app.kubernetes.io/component=agent"
"""What selects the pods of the node agent."""
_MIRROR = "kubernetes.io/config.mirror"
_HASH = re.compile(r"[0-9a-f]{32}")
_AGENT = "agent"
_TERMINAL = ("Succeeded", "Failed")

Json = Mapping[str, Any]


def read_pod(raw: Json) -> Pod:
    """A pod; the cgroup of a static one bears the hash of its configuration."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    uid = metadata["uid"]
    containers: dict[str, str | None] = {
        each["name"]: None
        for part in ("initContainers", "containers", "ephemeralContainers")
        for each in spec.get(part) or ()
    }
    running = False
    for part in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for each in status.get(part) or ():
            containers[each["name"]] = identity = _container_id(each.get("containerID"))
            running = running or (identity is not None and not _stopped(each.get("state") or {}))
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
    """The hash that a mirror pod names, empty where the pod cannot be one; whether its kubelet runs it is not looked at."""
    named = str((metadata.get("annotations") or {}).get(_MIRROR) or "")
    node = ("Node", spec.get("nodeName"), True)
    owners = (
        (owner.get("kind"), owner.get("name"), owner.get("controller"))
        for owner in metadata.get("ownerReferences") or ()
    )
    return named if _HASH.fullmatch(named) and node in owners else ""


def agent_is_ready(raw: Json) -> bool:
    """Whether a pod of the node agent has an agent that is alive.

    The other containers have their own word: a gate or an accountant that is away is told by the agent. Of a node that is lost (`is_lost`)
    this says nothing: what the kubelet last said of the containers stands then.
    """
    status = raw.get("status") or {}
    ready = _has_condition(status, "Ready", "True")
    for each in status.get("containerStatuses") or ():
        if each["name"] == _AGENT:
            ready = each["ready"]
    return ready and "deletionTimestamp" not in raw["metadata"]


def read_agent(raw: Json) -> tuple[str, bool]:
    """The node of a pod of the node agent, and whether the agent is alive."""
    return raw["spec"].get("nodeName") or "", agent_is_ready(raw)


def agents_by_node(agents: Iterable[tuple[str, bool]], lost: Collection[str]) -> dict[str, bool]:
    """Whether an agent is alive, by each node that has one; while one takes over from another there are two. `lost` are nodes."""
    found: dict[str, bool] = {}
    for node, ready in agents:
        found[node] = (found.get(node, False) or ready) and node not in lost
    return found


def is_lost(raw: Json) -> bool:
    """Whether the node controller lost sight of a node: the condition Ready is Unknown then, which no kubelet says of its own node."""
    return _has_condition(raw.get("status") or {}, "Ready", "Unknown")


def read_node(raw: Json) -> Node:
    """A node."""
    metadata = raw["metadata"]
    return Node(metadata["name"], metadata.get("labels") or {})


def read_namespace(raw: Json) -> Namespace:
    """A namespace."""
    metadata = raw["metadata"]
    return Namespace(
        metadata["name"],
        metadata.get("labels") or {},
        allowed=(metadata.get("annotations") or {}).get(ANNOTATION, ""),
        terminating="deletionTimestamp" in metadata,
    )


def _has_condition(status: Json, kind: str, value: str) -> bool:
    return any((each["type"], each["status"]) == (kind, value) for each in status.get("conditions") or ())


def _stopped(state: Json) -> bool:
    """Whether a container with this state has ended, or waits to be started again."""
    return "terminated" in state or "waiting" in state


def _container_id(text: str | None) -> str | None:
    """`containerd://0123...` without the runtime's name, as the container's cgroup is named."""
    return text.rpartition("//")[2] or None if text else None
