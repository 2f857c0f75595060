"""The names to reconcile after a change in the cluster."""

from collections.abc import Collection
from typing import NamedTuple


class Dirty(NamedTuple):
    """Nodes whose spec may differ now, and limits and groups whose status may differ now, by name.

    Limits have the names of `limit_name`, groups those of `Group.name`. With `all_nodes`, the
    namespaces in the spec of each node differ now. This change can wait.
    """

    nodes: frozenset[str] = frozenset()
    limits: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    all_nodes: bool = False

    def __or__(self, other: "Dirty") -> "Dirty":
        """Return the union of both."""
        return Dirty(
            self.nodes | other.nodes,
            self.limits | other.limits,
            self.groups | other.groups,
            self.all_nodes or other.all_nodes,
        )

    def only_nodes_in(self, known: Collection[str]) -> "Dirty":
        """Return the same without unknown nodes."""
        if all(node in known for node in self.nodes):
            return self
        return self._replace(nodes=frozenset(node for node in self.nodes if node in known))


CLEAN = Dirty()
