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
    """

    listed: frozenset[str] = frozenset()
    governed: frozenset[str] = frozenset()
    release: bool = False


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
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the spec cannot be read: {error!r}") from error
    governed = {uid for uid, names in limits.items() if names}
    return NodePods(frozenset(limits) | members, frozenset(governed | members))


def _text(uid: object) -> str:
    if not isinstance(uid, str):
        raise TypeError(f"a pod has the UID {uid!r}")
    return uid


def _mapping(group: object) -> Mapping[str, Any]:
    if not isinstance(group, dict):
        raise TypeError("a group is no object")
    return group
