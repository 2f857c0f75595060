"""Constraints over processes: each limit of each subject, with the processes in its scope (P1, P13).

- Pod: all processes of the subject, those of its sandbox too.
- Container: those of each container that the limit selects. While a selected container cannot be told apart, because the kubelet has not
  reported the id that it runs under, the processes of all containers that nobody named are held to the sum of what such containers may
  have. A pod's sandbox looks like one of these, so one unnamed container beside a named one is taken for it.
- Node: all processes of the subjects together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pinwarden.agent.governed import Governed
from pinwarden.agent.ledger import ProcessKey
from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import Scope


@dataclass(frozen=True, slots=True)
class Scoped:
    """A limit over processes, `amount` in bytes. `pod` is None with scope Node; `container` is a name."""

    limit: NodeLimit
    amount: int
    members: frozenset[ProcessKey]
    pod: str | None
    container: str | None = None


def scoped(subjects: Sequence[Governed]) -> list[Scoped]:
    """Every constraint on the subjects; all that share a limit of scope Node must be among them."""
    found: list[Scoped] = []
    nodes: dict[str, tuple[NodeLimit, set[ProcessKey]]] = {}
    for subject in subjects:
        for limit in subject.held.limits:
            if limit.scope is Scope.POD:
                found.append(Scoped(limit, limit.limit, subject.keys, subject.uid))
            elif limit.scope is Scope.CONTAINER:
                found += _by_container(limit, subject)
            else:
                nodes.setdefault(limit.name, (limit, set()))[1].update(subject.keys)
    found += [Scoped(limit, limit.limit, frozenset(keys), None) for limit, keys in nodes.values()]
    return found


def running_containers(limits: Iterable[NodeLimit], subject: Governed) -> dict[str, frozenset[ProcessKey]]:
    """The processes of each running container that one of these limits selects, by its name."""
    limits = list(limits)
    return {
        container.name: keys
        for container in subject.held.containers
        if container.id
        and (keys := subject.by_container.get(container.id)) is not None
        and any(_selects(limit, container.name) for limit in limits)
    }


def has_unknown_container(subject: Governed) -> bool:
    """Whether processes run in a container that a limit of scope Container may select and that has no name yet."""
    loose = _loose(subject)
    if not loose or not any(_unresolved(limit, subject) for limit in subject.held.by_container):
        return False
    return len(loose) > 1 or len(subject.by_container) == 1


def _by_container(limit: NodeLimit, subject: Governed) -> list[Scoped]:
    found = [
        Scoped(limit, limit.limit, keys, subject.uid, name)
        for name, keys in running_containers([limit], subject).items()
    ]
    unresolved = _unresolved(limit, subject)
    loose = frozenset[ProcessKey]().union(*_loose(subject))
    if unresolved and loose:
        found.append(Scoped(limit, limit.limit * unresolved, loose, subject.uid, ""))
    return found


def _unresolved(limit: NodeLimit, subject: Governed) -> int:
    """How many containers that the limit selects are not known by the id of a running one."""
    listed = {container.name: container.id for container in subject.held.containers}
    if not listed:
        return max(1, len(limit.containers))
    return sum(
        identity not in subject.by_container for name, identity in listed.items() if _selects(limit, name)
    )


def _loose(subject: Governed) -> list[frozenset[ProcessKey]]:
    """The processes of each container that the configuration gives no name, the sandbox among them."""
    named = {container.id for container in subject.held.containers}
    return [keys for identity, keys in subject.by_container.items() if identity not in named]


def _selects(limit: NodeLimit, name: str) -> bool:
    return not limit.containers or name in limit.containers
