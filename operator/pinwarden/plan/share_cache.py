"""Cache of the shares of nodes in the status of one limit or group.

The status of a ceiling over 150,000 pods is computed every few seconds, while few nodes have
changed.
"""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from pinwarden.plan.node_view import NodeView
from pinwarden.plan.types import Pod

_Resource = TypeVar("_Resource")
_Share = TypeVar("_Share")


class ShareCache(Generic[_Share]):
    """The shares of one resource by node.

    A share is valid while the resource and the view are the same objects, and the pods are equal.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[object, NodeView, list[Pod], _Share]] = {}

    def update(
        self,
        resource: _Resource,
        pods: Mapping[str, list[Pod]],
        views: Mapping[str, NodeView],
        summarize: Callable[[_Resource, list[Pod], NodeView], _Share],
    ) -> list[_Share]:
        """Return the share of each node in `pods`, if new from `summarize`; forget other nodes."""
        entries: dict[str, tuple[object, NodeView, list[Pod], _Share]] = {}
        for name, pods_on_node in pods.items():
            view = views[name]
            entry = self._entries.get(name)
            if (
                entry is None
                or entry[0] is not resource
                or entry[1] is not view
                or entry[2] != pods_on_node
            ):
                entry = (resource, view, pods_on_node, summarize(resource, pods_on_node, view))
            entries[name] = entry
        self._entries = entries
        return self.shares

    @property
    def shares(self) -> list[_Share]:
        """The shares of the last update."""
        return [share for *_, share in self._entries.values()]
