"""The liveness of the agents, from their pods and from the conditions of the nodes."""

from pinwarden.controller.transform import AgentPod


class AgentLiveness:
    """Count the ready agent pods by node, and keep the nodes that the node controller lost."""

    def __init__(self) -> None:
        self._pods: dict[str, AgentPod] = {}
        self._ready: dict[str, int] = {}
        self._lost: set[str] = set()

    def is_silent(self, node: str) -> bool:
        """Return whether the node is lost or has no ready agent."""
        return node in self._lost or not self._ready.get(node)

    def put_pod(self, pod: AgentPod) -> list[str]:
        """Store the pod of an agent and return the nodes whose agents it changes."""
        previous = self._pods.get(pod.uid)
        if previous == pod:
            return []
        self._pods[pod.uid] = pod
        return [*self._count(previous, -1), *self._count(pod, 1)]

    def remove_pod(self, uid: str) -> list[str]:
        """Remove the pod of an agent and return the nodes whose agents it changes."""
        return self._count(self._pods.pop(uid, None), -1)

    def put_node(self, name: str, *, lost: bool) -> bool:
        """Store whether the node is lost, and return whether this is a change."""
        changed = lost != (name in self._lost)
        (self._lost.add if lost else self._lost.discard)(name)
        return changed

    def forget_node(self, name: str) -> None:
        """Forget a deleted node."""
        self._lost.discard(name)

    def _count(self, pod: AgentPod | None, change: int) -> list[str]:
        if pod is None or not pod.ready or not pod.node:
            return []
        count = self._ready.get(pod.node, 0) + change
        self._ready[pod.node] = count
        if not count:
            del self._ready[pod.node]
        return [pod.node]
