"""Constraints over processes: each limit of each subject, with the processes in its scope (P1, P13).

- Pod: all processes of the subject, those of its sandbox too.
- Container: those of each container that the limit selects. While a selected container is not known by the id that it runs under, each
  container that nobody named is held to the limit by itself: it may be the selected one. So no container ever has more than the limit,
  however many have ended or are not reported yet. The processes of strays (`cgroups`) are held together, as one container.
- Node: all processes of the subjects together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import Scope
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.subject import STRAY, Subject


@dataclass(frozen=True, slots=True)
class Constraint:
    """A limit with the processes in its scope. `pod` is None with scope Node.

    `container` is a name, or `/` and an id while no name is known.
    """

    limit: NodeLimit
    members: frozenset[ProcessKey]
    pod: str | None
    container: str | None = None


def constraints_on(subjects: Sequence[Subject]) -> list[Constraint]:
    """Every constraint on the subjects; all that share a limit of scope Node must be among them."""
    found: list[Constraint] = []
    nodes: dict[str, tuple[NodeLimit, set[ProcessKey]]] = {}
    for subject in subjects:
        for limit in subject.policy.limits:
            if limit.scope is Scope.POD:
                found.append(Constraint(limit, subject.keys, subject.uid))
            elif limit.scope is Scope.CONTAINER:
                found += _by_container(limit, subject)
            else:
                nodes.setdefault(limit.name, (limit, set()))[1].update(subject.keys)
    found += [Constraint(limit, frozenset(keys), None) for limit, keys in nodes.values()]
    return found


def running_containers(limits: Iterable[NodeLimit], subject: Subject) -> dict[str, frozenset[ProcessKey]]:
    """The processes of each running container that one of these limits selects, by its name."""
    limits = list(limits)
    return {
        container.name: keys
        for container in subject.policy.containers
        if container.id
        and (keys := subject.by_container.get(container.id)) is not None
        and any(_selects(limit, container.name) for limit in limits)
    }


def has_unknown_container(subject: Subject) -> bool:
    """Whether a limit of scope Container may select a container whose processes cannot be told from another one's."""
    return STRAY in _loose(subject) and any(
        _unresolved(limit, subject) for limit in subject.policy.by_container
    )


def _by_container(limit: NodeLimit, subject: Subject) -> list[Constraint]:
    named = running_containers([limit], subject)
    unnamed = _loose(subject) if _unresolved(limit, subject) else {}
    containers = {**named, **{f"/{identity}": keys for identity, keys in unnamed.items()}}
    return [Constraint(limit, keys, subject.uid, name) for name, keys in containers.items()]


def _unresolved(limit: NodeLimit, subject: Subject) -> bool:
    """Whether a container that the limit selects is not known by the id of a running one."""
    listed = subject.policy.containers
    return not listed or any(
        container.id not in subject.by_container for container in listed if _selects(limit, container.name)
    )


def _loose(subject: Subject) -> dict[str, frozenset[ProcessKey]]:
    """The processes of each container that the configuration gives no name, the sandbox among them, by its id."""
    named = {container.id for container in subject.policy.containers}
    return {identity: keys for identity, keys in subject.by_container.items() if identity not in named}


def _selects(limit: NodeLimit, name: str) -> bool:
    return not limit.containers or name in limit.containers
