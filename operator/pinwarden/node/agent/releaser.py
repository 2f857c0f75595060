"""Subjects being released: watched until every process has its original RLIMIT_MEMLOCK (P14).

The limits of known processes are restored at once. But a process forked just before inherits the
limits of its parent, and is sampled only afterwards. Without a further sample, such a process would
keep these limits for its whole life. So a subject is sampled again until a sample finds no such
process. Then a few more sweeps follow, because a fork in progress shows its child late.

After a restart, the same is done for the processes of an earlier agent. Their subjects are found by
the processes in the file.
"""

from collections.abc import Mapping
from pathlib import Path

from pinwarden.node.agent.enforcer import RlimitEnforcer
from pinwarden.node.linux.cgroupfs import member_pids
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.cgroups import explore, pod_uid
from pinwarden.node.pods.policy import SubjectPolicy
from pinwarden.node.pods.process import ProcessTable
from pinwarden.node.pods.subject import Subject, keys_of

_MOST_SAMPLES = 10
_QUIET_SWEEPS = 3


class Releaser:
    """The subjects being released, each with its number of quiet sweeps in a row."""

    def __init__(self, table: ProcessTable, enforcer: RlimitEnforcer) -> None:
        self._table = table
        self._enforcer = enforcer
        self._quiet: dict[Subject, int] = {}

    def __bool__(self) -> bool:
        return bool(self._quiet)

    @property
    def keys(self) -> frozenset[ProcessKey]:
        """The processes of all subjects being released."""
        return keys_of(self._quiet)

    @property
    def uids(self) -> set[str]:
        """The uids of all subjects being released."""
        return {subject.uid for subject in self._quiet}

    def begin(self, subject: Subject) -> None:
        """Release a subject."""
        self._quiet[subject] = 0

    def begin_unclaimed(self, root: Path, limited: Mapping[str, Subject]) -> None:
        """Release the subjects of an earlier agent's processes, except `limited` ones, by uid.

        Raises OSError if a tree cannot be read.
        """
        watched = self.keys | keys_of(limited.values())
        pids = {key.pid for key in self._enforcer.unclaimed() if key not in watched}
        if pids:
            for uid, path in _owners(root, pids).items():
                if uid not in limited:
                    self.begin(Subject(uid, (path,), SubjectPolicy(())))

    def cancel(self, uid: str) -> None:
        """Stop releasing a subject, because limits apply again."""
        for subject in [subject for subject in self._quiet if subject.uid == uid]:
            del self._quiet[subject]

    def sweep(self, now: float) -> None:
        """Restore the processes of all subjects, and drop a subject after some quiet sweeps."""
        for subject, quiet in list(self._quiet.items()):
            self._quiet[subject] = quiet + 1 if self._restore(subject, now) else 0
            if self._quiet[subject] >= _QUIET_SWEEPS:
                del self._quiet[subject]

    def _restore(self, subject: Subject, now: float) -> bool:
        """Return whether the sweep is quiet: the first sample found nothing to restore."""
        for number in range(_MOST_SAMPLES):
            try:
                subject.sample(self._table, now)
            except OSError as error:
                subject.failure = str(error)
                return False
            if self._enforcer.restore_all(subject, subject.keys):
                return number == 0
        return False


def _owners(root: Path, pids: set[int]) -> dict[str, Path]:
    """Return the pod, or else the directory, of each of these processes, by uid."""
    owners: dict[str, Path] = {}
    for directory in explore("", [root]).members:
        if directory != root and not pids.isdisjoint(member_pids(directory)):
            pod = next(
                (path for path in (directory, *directory.parents) if pod_uid(path)), directory
            )
            owners[pod_uid(pod) or pod.relative_to(root).as_posix()] = pod
    return owners
