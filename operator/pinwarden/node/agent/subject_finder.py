"""Finds the subjects of a policy on the node: its pods, and the directories of its patterns."""

from pathlib import Path

from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.common.guard import Guard
from pinwarden.common.patterns import directories
from pinwarden.node.agent.lowered_reader import LoweredReader
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.pods.policy import NodePolicy, SubjectPolicy

Paths = tuple[Path, ...]


class SubjectFinder:
    """Lists the subjects below the root of a hierarchy. `guard` knows the kind `pattern`.

    A pod without a limit is a subject too if the plugin lowered the limits of its container. Each
    process that the runtime starts in this container has to be restored.
    """

    def __init__(self, root: Path, lowered: LoweredReader, guard: Guard) -> None:
        self._root = root
        self._lowered = lowered
        self._guard = guard
        self._pods = PodFinder(root)
        self._matched: dict[str, list[Path]] = {}

    def find(self, policy: NodePolicy, now: float) -> dict[str, tuple[Paths, SubjectPolicy]]:
        """Return the directories and the policy of each subject, by uid. Raises OSError."""
        self._lowered.poll()
        subjects = {
            uid: (paths, subject_policy or SubjectPolicy(()))
            for uid, paths in self._pods.find(now).items()
            if (subject_policy := policy.of_pod(uid)) is not None or uid in self._lowered.pods
        }
        matching: dict[Path, list[NodeLimit]] = {}
        for pattern, subject_policy in policy.patterns.items():
            for path in self._match(pattern):
                matching.setdefault(path, []).extend(subject_policy.limits)
        self._matched = {pattern: self._matched[pattern] for pattern in policy.patterns}
        for path, limits in matching.items():
            subjects[path.relative_to(self._root).as_posix()] = ((path,), SubjectPolicy.of(limits))
        return subjects

    def find_lowered(self, now: float) -> dict[str, Paths]:
        """Return the directories of each pod with a lowered container, by uid. Raises OSError."""
        self._lowered.poll()
        pods = self._pods.find(now) if self._lowered.pods else {}
        return {uid: paths for uid, paths in pods.items() if uid in self._lowered.pods}

    def _match(self, pattern: str) -> list[Path]:
        """Return the matching directories. After a failure, limits stay on those of before."""
        if self._guard.due("pattern", pattern):
            with self._guard.item("pattern", pattern):
                self._matched[pattern] = directories(self._root, pattern)
                return self._matched[pattern]
        self._matched[pattern] = [path for path in self._matched.get(pattern, ()) if path.is_dir()]
        return self._matched[pattern]
