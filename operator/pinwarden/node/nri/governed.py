"""The pods in the node's configuration, as far as the plugin needs them.

The agent's file holds the last NodePinConfig (`state.config`). Its models would treble the memory
of this process, so the plugin reads the few fields itself. An unreadable spec changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pinwarden.node.linux.prlimit import UNLIMITED

_RELEASE: Final = "Release"
_ENFORCED: Final = {"enforcement": "Enforce", "counting": "EveryPin"}


class EnforcedLimit(NamedTuple):
    """An enforced limit in bytes. With `containers`, only these containers have the limit."""

    amount: int
    containers: frozenset[str]


@dataclass(frozen=True, slots=True)
class NodePods:
    """The pods in the node's configuration, by UID.

    `governed` are those with a limit, or in a group. With mode Release nothing is governed.
    `limited` are the namespaces whose pods a limit or group may select, None for all namespaces
    except the `exempt`.
    `limits` has the enforced limits of each pod, and `unknown` the bytes of a pod outside `listed`.
    """

    listed: frozenset[str] = frozenset()
    governed: frozenset[str] = frozenset()
    release: bool = False
    limited: frozenset[str] | None = None
    exempt: frozenset[str] = frozenset()
    limits: Mapping[str, tuple[EnforcedLimit, ...]] = field(default_factory=dict)
    unknown: int | None = None

    def may_limit(self, namespace: str) -> bool:
        """Return whether a limit or group may select pods of the namespace."""
        return namespace not in self.exempt if self.limited is None else namespace in self.limited

    def smallest_limit(self, uid: str, container: str) -> int | None:
        """Return the smallest limit on the pod or on this container of the pod, None without."""
        if uid not in self.listed:
            return self.unknown
        return min(
            (
                limit.amount
                for limit in self.limits.get(uid, ())
                if not limit.containers or container in limit.containers
            ),
            default=None,
        )


def parse(content: Any) -> NodePods:
    """Return the pods of the agent's file. Raises ValueError for an unreadable spec."""
    try:
        spec = content["spec"]
        if spec.get("mode") == _RELEASE:
            return NodePods(release=True)
        named = {_text(pod["uid"]): pod.get("limits", []) for pod in spec.get("pods", [])}
        by_name = {
            limit["name"]: EnforcedLimit(limit["limit"], frozenset(limit.get("containers", ())))
            for limit in spec.get("limits", [])
            if _enforced(limit)
        }
        limits = {
            uid: tuple(by_name[name] for name in names if name in by_name)
            for uid, names in named.items()
        }
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
    governed = {uid for uid, names in named.items() if names}
    return NodePods(
        frozenset(named) | members,
        frozenset(governed | members),
        limited=limited,
        exempt=exempt,
        limits={uid: entries for uid, entries in limits.items() if entries},
        unknown=_amount(spec.get("unknownPods")),
    )


def _enforced(limit: object) -> bool:
    """Return whether the agent enforces this limit on all pins of pods.

    A limit of a later version is not enforced.
    """
    return (
        isinstance(limit, dict)
        and isinstance(limit.get("name"), str)
        and _amount(limit.get("limit")) is not None
        and all(limit.get(name, value) == value for name, value in _ENFORCED.items())
        and not (limit.get("sources") or limit.get("cgroupPattern"))
        and _are_texts(limit.get("containers", []))
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _amount(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= UNLIMITED else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no UID or namespace")
    return value


def _mapping(group: object) -> Mapping[str, Any]:
    if not isinstance(group, dict):
        raise TypeError("a group is no object")
    return group
