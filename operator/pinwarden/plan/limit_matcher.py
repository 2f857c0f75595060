"""Match limits to pods, with shared caches for similar pods.

Which limits match a pod depends on its namespace, its labels and its node. The matcher caches each
step: the limits of a namespace, the limits of the labels, and the limits excluded by the node. Pods
from `Pod.of` share their label maps, so a ReplicaSet of 1,000 pods is matched once. Each answer
equals `limit_compiler.matches`.
"""

from collections.abc import Mapping

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.plan.combinations import Combination
from pinwarden.plan.limit_compiler import Limit, LimitSettings, reaches_namespace, reaches_node
from pinwarden.plan.selectors import selects
from pinwarden.plan.types import Namespace, Node, Pod

_MAX_CACHED = 65536


class LimitMatcher:
    """The accepted limits, the namespaces and the nodes.

    After a change, the caller matches the concerned pods again.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self.nodes: dict[str, Node] = {}
        self.namespaces: dict[str, Namespace] = {}
        self._settings = settings
        self._namespaced: dict[str, dict[str, PinLimit]] = {}
        self._cluster: dict[str, ClusterPinLimit] = {}
        self._reaching: dict[str, dict[str, Limit]] = {}
        self._selecting: dict[tuple[str, int], tuple[Mapping[str, str], Combination]] = {}
        self._excluded: dict[str, frozenset[str]] = {}

    def put_limit(self, name: str, limit: Limit) -> None:
        """Add or replace a limit."""
        if isinstance(limit, PinLimit):
            self._namespaced.setdefault(limit.metadata.namespace or "", {})[name] = limit
        else:
            self._cluster[name] = limit
        self._clear_caches()

    def remove_limit(self, name: str, limit: Limit) -> None:
        """Remove a limit."""
        if isinstance(limit, PinLimit):
            self._namespaced.get(limit.metadata.namespace or "", {}).pop(name, None)
        else:
            self._cluster.pop(name, None)
        self._clear_caches()

    def put_node(self, node: Node) -> None:
        """Add or replace a node."""
        self.nodes[node.name] = node
        self._excluded.pop(node.name, None)

    def remove_node(self, name: str) -> None:
        """Remove a node; its pods are matched as on a node without labels."""
        self.nodes.pop(name, None)
        self._excluded.pop(name, None)

    def put_namespace(self, namespace: Namespace) -> None:
        """Add or replace a namespace."""
        self.namespaces[namespace.name] = namespace
        self._clear_caches()

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace; its pods are matched with only its name as label."""
        self.namespaces.pop(name, None)
        self._clear_caches()

    def match(self, pod: Pod) -> Combination:
        """Return the limits that match the pod."""
        node = self.nodes.get(pod.node)
        if node is not None and node.windows:
            return ()
        key = (pod.namespace, id(pod.labels))
        cached = self._selecting.get(key)
        if cached is None:
            if len(self._selecting) >= _MAX_CACHED:
                self._selecting.clear()
            # a reference to the labels keeps their id from being reused
            cached = self._selecting[key] = (pod.labels, self._select(pod))
        selected = cached[1]
        excluded = self._excluded_on(pod.node)
        return tuple(name for name in selected if name not in excluded) if excluded else selected

    def _select(self, pod: Pod) -> Combination:
        reaching = self._reaching.get(pod.namespace)
        if reaching is None:
            namespace = self.namespaces.get(pod.namespace) or Namespace(pod.namespace)
            reaching = self._reaching[pod.namespace] = {
                **self._namespaced.get(pod.namespace, {}),
                **{
                    name: limit
                    for name, limit in self._cluster.items()
                    if reaches_namespace(limit, namespace, self._settings)
                },
            }
        return tuple(
            sorted(
                name
                for name, limit in reaching.items()
                if selects(limit.spec.pod_selector, pod.labels)
            )
        )

    def _excluded_on(self, node: str) -> frozenset[str]:
        excluded = self._excluded.get(node)
        if excluded is None:
            known = self.nodes.get(node) or Node(node)
            excluded = self._excluded[node] = frozenset(
                name for name, limit in self._cluster.items() if not reaches_node(limit, known)
            )
        return excluded

    def _clear_caches(self) -> None:
        self._reaching.clear()
        self._selecting.clear()
        self._excluded.clear()
