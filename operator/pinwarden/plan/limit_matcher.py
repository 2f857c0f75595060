"""Which limits hold for a pod, remembered as far as pods are alike.

What holds for a pod follows from its namespace, its labels and its node, and each is looked at by itself: the limits that reach a
namespace, which of them select the labels, and which are kept away by the node. Pods that `Pod.of` made share their label maps, so the
answer for a ReplicaSet of 1,000 is worked out once. Every answer equals what `compile.matches` says limit by limit.
"""

from collections.abc import Mapping

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.plan.limit_compiler import Limit, Settings, reaches_namespace, reaches_node
from pinwarden.plan.selectors import selects
from pinwarden.plan.types import Namespace, Node, Pod

Combination = tuple[str, ...]
"""Names of the limits that hold together for a pod, sorted."""

_REMEMBERED = 65536


class LimitMatcher:
    """The limits in use, namespaces and nodes; whoever changes one asks again for the pods concerned."""

    def __init__(self, settings: Settings) -> None:
        self.nodes: dict[str, Node] = {}
        self.namespaces: dict[str, Namespace] = {}
        self._settings = settings
        self._namespaced: dict[str, dict[str, PinLimit]] = {}
        self._cluster: dict[str, ClusterPinLimit] = {}
        self._reaching: dict[str, dict[str, Limit]] = {}
        self._selecting: dict[tuple[str, int], tuple[Mapping[str, str], Combination]] = {}
        self._kept_away: dict[str, frozenset[str]] = {}

    def put_limit(self, name: str, limit: Limit) -> None:
        """Take a limit into use, or take it anew."""
        if isinstance(limit, PinLimit):
            self._namespaced.setdefault(limit.metadata.namespace or "", {})[name] = limit
        else:
            self._cluster[name] = limit
        self._forget()

    def remove_limit(self, name: str, limit: Limit) -> None:
        """Take a limit out of use."""
        if isinstance(limit, PinLimit):
            self._namespaced.get(limit.metadata.namespace or "", {}).pop(name, None)
        else:
            self._cluster.pop(name, None)
        self._forget()

    def put_node(self, node: Node) -> None:
        """Take a node's labels."""
        self.nodes[node.name] = node
        self._kept_away.pop(node.name, None)

    def remove_node(self, name: str) -> None:
        """From now on the node has no labels."""
        self.nodes.pop(name, None)
        self._kept_away.pop(name, None)

    def put_namespace(self, namespace: Namespace) -> None:
        """Take a namespace's labels."""
        self.namespaces[namespace.name] = namespace
        self._forget()

    def remove_namespace(self, name: str) -> None:
        """From now on the namespace has no label but its name."""
        self.namespaces.pop(name, None)
        self._forget()

    def match(self, pod: Pod) -> Combination:
        """The limits in use that hold for the pod."""
        node = self.nodes.get(pod.node)
        if node is not None and node.windows:
            return ()
        key = (pod.namespace, id(pod.labels))
        known = self._selecting.get(key)
        if known is None:
            if len(self._selecting) >= _REMEMBERED:
                self._selecting.clear()
            # the map is kept beside the answer, so that nothing else can get its id
            known = self._selecting[key] = (pod.labels, self._select(pod))
        found = known[1]
        away = self._away(pod.node)
        return tuple(name for name in found if name not in away) if away else found

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
            sorted(name for name, limit in reaching.items() if selects(limit.spec.pod_selector, pod.labels))
        )

    def _away(self, node: str) -> frozenset[str]:
        away = self._kept_away.get(node)
        if away is None:
            known = self.nodes.get(node) or Node(node)
            away = self._kept_away[node] = frozenset(
                name for name, limit in self._cluster.items() if not reaches_node(limit, known)
            )
        return away

    def _forget(self) -> None:
        self._reaching.clear()
        self._selecting.clear()
        self._kept_away.clear()
