"""Groups subjects with a common limit of scope Node, or a common process, for one allocation."""

from collections.abc import Iterable

from pinwarden.api.pinlimit import Scope
from pinwarden.node.pods.subject import Subject


def batches(subjects: Iterable[Subject]) -> list[list[Subject]]:
    """Return the subjects in batches without a common limit of scope Node or a common process."""
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
    for inner, outer in _nested(subjects):
        leader[find(inner)] = find(outer)
    by_leader: dict[str, list[Subject]] = {}
    for subject in subjects:
        by_leader.setdefault(find(subject.uid), []).append(subject)
    return list(by_leader.values())


def _node_limits(subject: Subject) -> list[str]:
    return [limit.name for limit in subject.policy.limits if limit.scope is Scope.NODE]


def _nested(subjects: list[Subject]) -> list[tuple[str, str]]:
    """Return pairs of uids: a directory of the first is at or below a directory of the second."""
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
