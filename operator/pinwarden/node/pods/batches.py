"""Which subjects must be dealt together: those that share a limit of scope Node, or that may share a process."""

from collections.abc import Iterable

from pinwarden.api.pinlimit import Scope
from pinwarden.node.pods.subject import Subject


def batches(subjects: Iterable[Subject]) -> list[list[Subject]]:
    """The subjects in groups, each subject in one; those in different groups have neither in common."""
    subjects = list(subjects)
    leader = {subject.uid: subject.uid for subject in subjects}

    def find(uid: str) -> str:
        while leader[uid] != uid:
            leader[uid] = leader[leader[uid]]
            uid = leader[uid]
        return uid

    first_with: dict[str, str] = {}
    for subject in subjects:
        for name in _node_limits(subject):
            leader[find(subject.uid)] = find(first_with.setdefault(name, subject.uid))
    for one, other in _nested(subjects):
        leader[find(one)] = find(other)
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(find(subject.uid), []).append(subject)
    return list(groups.values())


def _node_limits(subject: Subject) -> list[str]:
    return [limit.name for limit in subject.policy.limits if limit.scope is Scope.NODE]


def _nested(subjects: list[Subject]) -> list[tuple[str, str]]:
    """Pairs of which one has a directory at or below one of the other: patterns may match such."""
    owners: dict[str, list[str]] = {}
    for subject in subjects:
        for path in subject.paths:
            owners.setdefault(str(path), []).append(subject.uid)
    return [
        (uid, other)
        for path, uids in owners.items()
        for uid in uids
        for above in (path, *_parents(path))
        for other in owners.get(above, ())
        if other != uid
    ]


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]
