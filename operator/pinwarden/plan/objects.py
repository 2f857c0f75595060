"""From objects as the API server writes them to the values that the rules read (`world`).

Nothing here fails on a field that is missing: what is not there is read as empty.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pinwarden.plan.allowed import ANNOTATION
from pinwarden.plan.world import WINDOWS, Namespace, Node, Pod

AGENT_SELECTOR = "app.kubernetes.io/name=pinwarden,app.kubernetes.io/component=agent"
"""What selects the pods of the node agent."""
_STATIC_HASH = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash")
_AGENT = "agent"
_TERMINAL = ("Succeeded", "Failed")

Json = Mapping[str, Any]


def read_pod(raw: Json) -> Pod:
    """A pod; static pods bear the hash of their configuration in the name of their cgroup."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    uid = metadata["uid"]
    annotations = metadata.get("annotations") or {}
    static = next((annotations[name] for name in _STATIC_HASH if annotations.get(name)), None)
    containers: dict[str, str | None] = {
        each["name"]: None for part in ("initContainers", "containers") for each in spec.get(part) or ()
    }
    for part in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for each in status.get(part) or ():
            containers[each["name"]] = _container_id(each.get("containerID"))
    return Pod.of(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=uid,
        cgroup_uid=static or uid,
        node=spec.get("nodeName") or "",
        labels=metadata.get("labels") or {},
        containers=containers,
        terminal=status.get("phase") in _TERMINAL,
        windows=(spec.get("os") or {}).get("name") == WINDOWS,
    )


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


def _container_id(text: str | None) -> str | None:
    """`containerd://0123...` without the runtime's name, as the container's cgroup is named."""
    return text.rpartition("//")[2] or None if text else None
