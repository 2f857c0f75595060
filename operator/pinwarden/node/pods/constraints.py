"""Constraints over processes: each limit of each subject, with the processes in its scope (P1,
P13).

- Pod: all processes of the subject, including those of its sandbox.
- Container: the processes of each selected container. The current id of a selected container can
  be unknown. Then each unnamed container gets the limit, because any of them can be the selected
  one. So no container exceeds the limit, even before the kubelet has reported its id. The processes
  outside all container directories (`cgroups`) count as one container.
- Node: all processes of the subjects together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import Enforcement, Scope
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

    @property
    def enforced(self) -> bool:
        """Whether the limit is enforced. Audit changes no process (P13)."""
        return self.limit.enforcement is Enforcement.ENFORCE


def constraints_on(subjects: Sequence[Subject]) -> list[Constraint]:
    """Return all constraints on the subjects.

    All subjects of a limit of scope Node must be among them.
    """
    constraints: list[Constraint] = []
    nodes: dict[str, tuple[NodeLimit, set[ProcessKey]]] = {}
    for subject in subjects:
        for limit in subject.policy.limits:
            if limit.scope is Scope.POD:
                constraints.append(Constraint(limit, subject.keys, subject.uid))
            elif limit.scope is Scope.CONTAINER:
                constraints += _by_container(limit, subject)
            else:
                nodes.setdefault(limit.name, (limit, set()))[1].update(subject.keys)
    constraints += [Constraint(limit, frozenset(keys), None) for limit, keys in nodes.values()]
    return constraints


def covered_by(constraints: Iterable[Constraint]) -> frozenset[ProcessKey]:
    """Return the processes in the scope of any of these constraints."""
    return frozenset[ProcessKey]().union(*(constraint.members for constraint in constraints))


def running_containers(
    limits: Iterable[NodeLimit], subject: Subject
) -> dict[str, frozenset[ProcessKey]]:
    """Return the processes of each running container selected by a limit, by container name."""
    limits = list(limits)
    return {
        container.name: keys
        for container in subject.policy.containers
        if container.id
        and (keys := subject.by_container.get(container.id)) is not None
        and any(_selects(limit, container.name) for limit in limits)
    }


def has_unknown_container(subject: Subject) -> bool:
    """Return whether a limit of scope Container can select processes outside all containers."""
    return STRAY in _unnamed(subject) and any(
        _unresolved(limit, subject) for limit in subject.policy.by_container
    )


def _by_container(limit: NodeLimit, subject: Subject) -> list[Constraint]:
    named = running_containers([limit], subject)
    unnamed = _unnamed(subject) if _unresolved(limit, subject) else {}
    containers = {**named, **{f"/{identity}": keys for identity, keys in unnamed.items()}}
    return [Constraint(limit, keys, subject.uid, name) for name, keys in containers.items()]


def _unresolved(limit: NodeLimit, subject: Subject) -> bool:
    """Return whether the limit selects a container without a known running id."""
    listed = subject.policy.containers
    return not listed or any(
        container.id not in subject.by_container
        for container in listed
        if _selects(limit, container.name)
    )


def _unnamed(subject: Subject) -> dict[str, frozenset[ProcessKey]]:
    """Return the processes of each container without a name, by id, including the sandbox."""
    named = {container.id for container in subject.policy.containers}
    return {
        identity: keys for identity, keys in subject.by_container.items() if identity not in named
    }


def _selects(limit: NodeLimit, name: str) -> bool:
    return not limit.containers or name in limit.containers
