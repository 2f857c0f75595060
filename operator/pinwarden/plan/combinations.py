"""Pods by the combination of limits that match them.

A cluster of 150,000 pods has few combinations. So a pod needs one entry, however many limits match it,
and a result that depends only on the combination is computed once.
"""

from collections.abc import Collection, Iterator

Combination = tuple[str, ...]
"""The sorted names of all limits that match a pod."""


class PodsByCombination:
    """The UIDs of pods by combination, and the combinations by limit."""

    def __init__(self) -> None:
        self._pods: dict[Combination, set[str]] = {}
        self._combinations: dict[str, set[Combination]] = {}

    def add(self, uid: str, combination: Combination) -> None:
        """Add a pod."""
        pods = self._pods.get(combination)
        if pods is None:
            pods = self._pods[combination] = set()
            for limit in combination:
                self._combinations.setdefault(limit, set()).add(combination)
        pods.add(uid)

    def remove(self, uid: str, combination: Combination) -> None:
        """Remove a pod."""
        pods = self._pods[combination]
        pods.discard(uid)
        if pods:
            return
        del self._pods[combination]
        for limit in combination:
            self._combinations[limit].discard(combination)
            if not self._combinations[limit]:
                del self._combinations[limit]

    def move(self, uid: str, old: Combination, new: Combination) -> None:
        """Move a pod to another combination."""
        if old != new:
            self.remove(uid, old)
            self.add(uid, new)

    def with_limit(self, limit: str) -> Collection[Combination]:
        """Return the combinations that contain the limit."""
        return self._combinations.get(limit, ())

    def pods_with_limit(self, limit: str) -> Iterator[str]:
        """Yield the UIDs of the pods that the limit matches."""
        return (uid for combination in self.with_limit(limit) for uid in self._pods[combination])
