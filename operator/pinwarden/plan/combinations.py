"""Pods by combination: the set of their limits.

A cluster of 150,000 pods has few combinations. So a pod needs one entry for all its limits, and a
result for a combination is computed once.
"""

from collections.abc import Collection, Iterator

from pinwarden.plan.sets import discard

Combination = tuple[str, ...]
"""The sorted names of all limits of a pod."""


class PodsByCombination:
    """The UIDs of pods by combination, and the combinations by limit."""

    def __init__(self) -> None:
        self._pods: dict[Combination, set[str]] = {}
        self._combinations: dict[str, set[Combination]] = {}

    def add(self, uid: str, combination: Combination) -> None:
        """Add a pod."""
        if combination not in self._pods:
            for limit in combination:
                self._combinations.setdefault(limit, set()).add(combination)
        self._pods.setdefault(combination, set()).add(uid)

    def remove(self, uid: str, combination: Combination) -> None:
        """Remove a pod."""
        discard(self._pods, combination, uid)
        if combination not in self._pods:
            for limit in combination:
                discard(self._combinations, limit, combination)

    def move(self, uid: str, old: Combination, new: Combination) -> None:
        """Move a pod to another combination."""
        if old != new:
            self.remove(uid, old)
            self.add(uid, new)

    def with_limit(self, limit: str) -> Collection[Combination]:
        """Return the combinations with the limit."""
        return self._combinations.get(limit, ())

    def pods_with_limit(self, limit: str) -> Iterator[str]:
        """Yield the UIDs of the limit's pods."""
        return (uid for combination in self.with_limit(limit) for uid in self._pods[combination])
