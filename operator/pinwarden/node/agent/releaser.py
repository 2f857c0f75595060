"""Subjects that nothing holds any more, followed until the last of their processes has back what it had (P14).

What a process had is given back to those that are known. But a process that is forked just before comes with its parent's dealt limits and
is seen only afterwards; left alone it would keep them for as long as it lives. So a subject is looked at again until no look finds such a
process, and then at a few more sweeps, because a fork that was under way shows its child late.

After a restart the same holds for what an earlier agent dealt to: the subjects are found by the processes that it wrote down.
"""

from pathlib import Path

from pinwarden.node.agent.enforcer import Dealer
from pinwarden.node.linux.cgroupfs import member_pids
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.cgroups import explore, pod_uid
from pinwarden.node.pods.policy import Held
from pinwarden.node.pods.process import ProcessTable
from pinwarden.node.pods.subject import DealtPairs, Governed

_MOST_LOOKS = 10
_QUIET_SWEEPS = 3


class Partings:
    """The subjects that are parted from, each with the sweeps in a row that found nothing to give back."""

    def __init__(self, table: ProcessTable, dealer: Dealer) -> None:
        self._table = table
        self._dealer = dealer
        self._quiet: dict[Governed, int] = {}

    def __bool__(self) -> bool:
        return bool(self._quiet)

    @property
    def keys(self) -> frozenset[ProcessKey]:
        """Their processes."""
        return frozenset[ProcessKey]().union(*(subject.keys for subject in self._quiet))

    def begin(self, subject: Governed) -> None:
        """Nothing holds it any more."""
        self._quiet[subject] = 0

    def begin_left(self, root: Path) -> None:
        """The same for the subjects of what an earlier agent dealt to and nothing holds. Raises OSError when a tree cannot be read."""
        followed = self.keys
        pids = {key.pid for key in self._dealer.left() if key not in followed}
        if pids:
            for uid, path in _holders(root, pids).items():
                self.begin(Governed(uid, (path,), Held(())))

    def end(self, uid: str) -> DealtPairs | None:
        """It is held again: what was dealt to it lately, where it was parted from."""
        for subject in list(self._quiet):
            if subject.uid == uid:
                del self._quiet[subject]
                return subject.deals
        return None

    def sweep(self, now: float) -> bool:
        """Gives back what is found, and forgets those where nothing was for a while; whether all that is known has been given back."""
        done = True
        for subject, quiet in list(self._quiet.items()):
            clean, found = self._give_back(subject, now)
            done &= clean
            self._quiet[subject] = 0 if found else quiet + 1
            if self._quiet[subject] >= _QUIET_SWEEPS:
                del self._quiet[subject]
        return done

    def _give_back(self, subject: Governed, now: float) -> tuple[bool, bool]:
        """Whether a look found nothing more to give back, and whether any before did."""
        for look in range(_MOST_LOOKS):
            try:
                subject.look(self._table, now)
            except OSError as error:
                subject.failure = str(error)
                return False, True
            if self._dealer.part(subject, subject.keys):
                return True, look > 0
        return False, True


def _holders(root: Path, pids: set[int]) -> dict[str, Path]:
    """The directories that hold these processes by the uid of their subject; a pod's own directory where they are in a pod."""
    found: dict[str, Path] = {}
    for directory in explore("", [root]).members:
        if directory != root and not pids.isdisjoint(member_pids(directory)):
            pod = next((path for path in (directory, *directory.parents) if pod_uid(path)), directory)
            found[pod_uid(pod) or pod.relative_to(root).as_posix()] = pod
    return found
