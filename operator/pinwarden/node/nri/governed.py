"""The pods in the node's configuration, as far as the plugin needs them.

The agent's file holds the last NodePinConfig (`state.config`). Its models would treble the memory
of this process, so the plugin reads the few fields itself. An unreadable spec changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_RELEASE = "Release"


@dataclass(frozen=True, slots=True)
class NodePods:
    """The pods in the node's configuration, by UID.

    `governed` are those with a limit, or in a group. With mode Release nothing is governed.
    `limited` are the namespaces whose pods a limit or group may select, None for all namespaces
    except the `exempt`.
    """

    listed: frozenset[str] = frozenset()
    governed: frozenset[str] = frozenset()
    release: bool = False
    limited: frozenset[str] | None = None
    exempt: frozenset[str] = frozenset()

    def may_limit(self, namespace: str) -> bool:
        """Return whether a limit or group may select pods of the namespace."""
        return namespace not in self.exempt if self.limited is None else namespace in self.limited


def parse(content: Any) -> NodePods:
    """Return the pods of the agent's file. Raises ValueError for an unreadable spec."""
    try:
        spec = content["spec"]
        if spec.get("mode") == _RELEASE:
            return NodePods(release=True)
        limits = {_text(pod["uid"]): pod.get("limits", []) for pod in spec.get("pods", [])}
        members = {
            _text(uid)
            for group in spec.get("groups", [])
            for member in _mapping(group).get("members", [])
            for uid in member.get("pods", [])
        }
        limited = spec.get("limitedNamespaces")
        limited = None if limited is None else frozenset(map(_text, limited))
        exempt = frozenset(map(_text, spec.get("exemptNamespaces", [])))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the spec cannot be read: {error!r}") from error
    governed = {uid for uid, names in limits.items() if names}
    return NodePods(
        frozenset(limits) | members,
        frozenset(governed | members),
        limited=limited,
        exempt=exempt,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no UID or namespace")
    return value


def _mapping(group: object) -> Mapping[str, Any]:
    if not isinstance(group, dict):
        raise TypeError("a group is no object")
    return group
