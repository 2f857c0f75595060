"""A round of the accountant: find and provision objects, sample borrows, and publish a status.

The accountant has no thread and never waits; the caller configures it and ticks. Between rounds it
only caches, so after a crash the next round finds everything again (H3).

The wait after a round is `TIMES_ITS_COST` times the round's processor time, at most
`LONGEST_SECONDS`. So a busy node is sampled less often, and each figure has its time (H2). A round
of up to a second takes a twentieth of a core, a longer one takes more. Pods without membership
are walked every `OTHERS_SECONDS`, or less often by the same rule. Their walk does not delay the
next round.

If two groups may have one object, the first group in the spec has it. This is the older group, and
the other group reports this.

A failed pod or group affects only itself (`guard`). The group reports the cause, the pod counts as
unreadable, and all others are accounted.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pinwarden.api.nodepinconfig import Mode, NodeGroup, NodePinConfigSpec
from pinwarden.api.reasons import NOT_MADE, NOT_READABLE, NOT_REMOVED
from pinwarden.api.sharedmemorygroup import Accounting, Management, Phase
from pinwarden.common.guard import Guard
from pinwarden.node.accountant.dead_cgroups import DeadCgroups
from pinwarden.node.accountant.finder import Finder
from pinwarden.node.accountant.finder.result import MOST_OBJECTS, ObjectsNotFoundError, Pids
from pinwarden.node.accountant.provisioner import Provisioner, ProvisionError
from pinwarden.node.accountant.report import GroupReporter, GroupState
from pinwarden.node.accountant.sampler import Borrow, BorrowSampler
from pinwarden.node.accountant.users import find_users
from pinwarden.node.linux.cgroupfs import member_pids, process_hierarchy
from pinwarden.node.pods.cgroups import PodCgroup, explore
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.shm.objects import ObjectSet
from pinwarden.node.state.accountant_status import AccountantStatus
from pinwarden.node.state.gate_status import NAME as GATE_STATUS
from pinwarden.node.state.gate_status import GateStatus
from pinwarden.node.state.gate_status import load as load_gate_status

SHORTEST_SECONDS: Final = 1.0
OTHERS_SECONDS: Final = 10.0
LONGEST_SECONDS: Final = 20.0
TIMES_ITS_COST: Final = 20
MOST_NODE_OBJECTS: Final = 8192
SEGMENTS: Final = "shared-segments.json"
_NAMED: Final = 3
KINDS = ("pod", "group", "budget", "round")
"""The kinds of guarded items."""


class Accountant:
    """Accounts the shared memory of one node.

    `budget`: the bytes for groups with `management: Create`; `run_dir`: the folder of the gate's
    status; `clock` is monotonic; `guard` knows the `KINDS`.
    """

    def __init__(
        self,
        *,
        cgroup_root: Path,
        proc_root: Path,
        run_dir: Path,
        budget: int,
        first: int = 1,
        clock: Callable[[], float] = time.monotonic,
        guard: Guard | None = None,
    ) -> None:
        """Raises ValueError if there is no cgroup hierarchy."""
        self._guard = guard or Guard(KINDS, clock)
        self._pods = PodFinder(process_hierarchy(cgroup_root))
        self._proc_root = proc_root
        self._gate_status = run_dir / GATE_STATUS
        self._finder = Finder(proc_root, first)
        self._provisioner = Provisioner(proc_root, cgroup_root, budget, run_dir / SEGMENTS, first)
        self._members = BorrowSampler(proc_root, self._guard)
        self._others = BorrowSampler(proc_root, self._guard)
        self._others_borrows: Mapping[tuple[str, str], Borrow] = {}
        self._others_due = float("-inf")
        self._dead_cgroups = DeadCgroups(cgroup_root)
        self._reporter = GroupReporter(
            self._members,
            self._others,
            self._finder,
            self._provisioner,
            self._dead_cgroups,
            self._guard,
            clock,
        )
        self._clock = clock
        self._groups: Sequence[NodeGroup] = ()
        self.status = AccountantStatus()

    @property
    def pods_walked(self) -> int:
        """The number of pods walked in the last round; the others cannot have changed."""
        return self._members.walked

    def configure(self, spec: NodePinConfigSpec) -> None:
        """Take a spec for the next tick. In mode Release nothing is accounted, and objects stay."""
        self._groups = () if spec.mode is Mode.RELEASE else spec.groups
        self._others_due = float("-inf")
        self._dead_cgroups.retain({group.uid for group in self._groups})

    def tick(self) -> float:
        """Do a round, and return the seconds until the next one.

        Raises OSError if pods cannot be listed.
        """
        began, spent = self._clock(), time.process_time()
        if not self._groups:
            self.status = AccountantStatus(failures=dict(self._guard.failures))
            return SHORTEST_SECONDS
        paths = self._pods.find(began)
        attached = frozenset[str]().union(*(group.pods() for group in self._groups))
        pods = dict(self._explore({uid: paths[uid] for uid in attached if uid in paths}))
        states = self._find(pods, attached & paths.keys())
        others_cost = self._sample(states, pods, paths, began)
        gate = self._load_gate_status()
        for state in states:
            name = f"{state.group.uid}: phase"
            with self._guard.item("group", name):
                self._update_phase(state)
                continue
            state.problem = NOT_READABLE, self._guard.cause("group", name)
        self.status = AccountantStatus(
            objects={state.group.uid: state.object_set for state in states},
            groups=tuple(self._reporter.groups(states, pods, gate)),
            fair_view=tuple(self._reporter.fair_view(states, pods)),
            failures=dict(self._guard.failures),
        )
        cost = time.process_time() - spent - others_cost  # without children, who populate objects
        return min(max(SHORTEST_SECONDS, cost * TIMES_ITS_COST), LONGEST_SECONDS)

    def _explore(self, paths: Mapping[str, Sequence[Path]]) -> Iterator[tuple[str, PodCgroup]]:
        for uid, cgroups in paths.items():
            with self._guard.item("pod", uid):
                yield uid, explore(uid, cgroups)

    def _load_gate_status(self) -> GateStatus | None:
        with self._guard.item("round", "the gate's status file"):
            return load_gate_status(self._gate_status)
        return None

    # -- objects -------------------------------------------------------------------------------

    def _find(self, pods: Mapping[str, PodCgroup], present: frozenset[str]) -> list[GroupState]:
        """Find the objects of all groups.

        `present` are the attached pods of this node, including unreadable ones.
        """
        pids = {}
        for uid, pod in pods.items():
            with self._guard.item("pod", f"{uid}: processes"):
                pids[uid] = [pid for member in pod.members for pid in sorted(member_pids(member))]
        with self._guard.item("budget"):
            self._provisioner.begin()
        with self._guard.item("round", "the finder"):
            self._finder.begin(self._groups, pids)
        states = [GroupState(group) for group in self._groups]
        taken = ObjectSet()
        for state in states:
            taken = self._find_group(state, pids, present, taken)
        return states

    def _find_group(
        self, state: GroupState, pids: Pids, present: frozenset[str], taken: ObjectSet
    ) -> ObjectSet:
        """Find the objects of a group, and return the objects of all groups so far."""
        group = state.group
        try:
            if group.management is Management.CREATE and not group.draining:
                self._provision(state)
            members = {uid: pids[uid] for uid in sorted(group.pods()) if uid in pids}
            room = min(MOST_OBJECTS, MOST_NODE_OBJECTS - len(taken.objects))
            unread = not group.pods() & present <= pids.keys()
            objects = self._finder.find(group, members, path=state.path, room=room, unread=unread)
        except ObjectsNotFoundError as error:
            state.problem = state.problem if state.problem[0] else (error.reason, str(error))
            return taken
        except OSError as error:
            state.problem = (
                NOT_READABLE,
                f"{error.filename or ''} {error.strerror or error}".strip(),
            )
            return taken
        except Exception as error:  # noqa: BLE001 - a failure of one group must not stop the others
            self._guard.failed("group", group.uid, error)
            state.problem = NOT_READABLE, self._guard.cause("group", group.uid)
            return taken
        self._guard.succeeded("group", group.uid)
        if _claimed(objects.object_set, taken):
            state.problem = "Claimed", "an older group has this object"
            state.claimed = objects
            return taken
        state.objects = objects
        return ObjectSet(
            taken.devices | state.object_set.devices, taken.objects | state.object_set.objects
        )

    def _provision(self, state: GroupState) -> None:
        """Provision a group's object, or set the `problem`."""
        if not self._guard.due("budget"):
            state.problem = (
                NOT_MADE,
                f"the existing objects are unknown: {self._guard.cause('budget')}",
            )
            return
        try:
            self._provisioner.ensure(state.group)
        except ProvisionError as error:
            state.problem = error.reason, str(error)

    # -- borrows -------------------------------------------------------------------------------

    def _sample(
        self,
        states: Sequence[GroupState],
        pods: Mapping[str, PodCgroup],
        paths: Mapping[str, Sequence[Path]],
        now: float,
    ) -> float:
        """Sample all borrows, and return the processor seconds for pods without membership."""
        others_cost = 0.0
        counted = {
            state.group.uid: state
            for state in states
            if state.objects and state.group.accounting is Accounting.BORROW
        }
        objects = {uid: state.object_set for uid, state in counted.items()}
        dmabufs = frozenset[int]().union(
            *(state.objects.dmabuf_devices for state in counted.values() if state.objects)
        )
        stamps = {uid: state.objects.charge for uid, state in counted.items() if state.objects}
        members = {uid: pod.members for uid, pod in pods.items() if counted}
        borrows = dict(self._members.sample(now, members, objects, objects.keys(), dmabufs, stamps))
        if counted and now >= self._others_due:
            spent = time.process_time()
            strangers = self._explore(
                {uid: cgroups for uid, cgroups in paths.items() if uid not in pods}
            )
            others = {uid: pod.members for uid, pod in strangers}
            self._others_borrows = self._others.sample(
                now, others, objects, objects.keys(), dmabufs, stamps
            )
            others_cost = time.process_time() - spent
            self._others_due = now + max(OTHERS_SECONDS, others_cost * TIMES_ITS_COST)
        others_now = paths.keys() - pods.keys()
        self._others.retain(others_now)
        borrows |= {
            key: borrow for key, borrow in self._others_borrows.items() if key[1] in others_now
        }
        for (uid, pod_uid), borrow in borrows.items():
            if uid in counted:
                counted[uid].borrows[pod_uid] = borrow
        return others_cost

    # -- phases --------------------------------------------------------------------------------

    def _update_phase(self, state: GroupState) -> None:
        """Set a group's phase, and release a draining group without users (M10)."""
        group = state.group
        if group.draining:
            self._drain(state)
        elif state.objects:
            state.phase = Phase.ACTIVE
        else:
            left = state.problem[0] == NOT_READABLE or self._is_left(state)
            state.phase = Phase.PENDING if group.pods() or left else Phase.RELEASED

    @staticmethod
    def _is_left(state: GroupState) -> bool:
        """Return whether an older group has the object of this group now.

        This group must remove the object.
        """
        return state.claimed is not None and state.group.management is Management.CREATE

    def _drain(self, state: GroupState) -> None:
        group = state.group
        state.phase = Phase.DRAINING
        created = group.management is Management.CREATE
        if state.objects is None and state.problem[0] == NOT_READABLE:
            return
        objects = state.claimed if self._is_left(state) else state.objects
        try:
            if objects and (
                users := find_users(self._proc_root, objects.object_set, opened=created)
            ):
                state.problem = "InUse", f"it waits for {_named(users)}"
                return
            if objects and objects.cause:
                state.problem = NOT_READABLE, objects.cause
                return
            if created:  # the object may also be half provisioned
                self._provisioner.release(group, known=objects is not None)
        except OSError as error:
            state.problem = NOT_REMOVED, f"{error.strerror or error}"
            return
        state.phase, state.problem = Phase.RELEASED, ("", "")
        state.objects = None


def _claimed(objects: ObjectSet, taken: ObjectSet) -> bool:
    """Return whether an object is taken already, by itself or with its whole device."""
    taken_devices = taken.devices | {identity.device for identity in taken.objects}
    return not objects.devices.isdisjoint(taken_devices) or any(map(taken.has, objects.objects))


def _named(pids: Sequence[int]) -> str:
    named = ", ".join(str(pid) for pid in pids[:_NAMED])
    more = f" and {len(pids) - _NAMED} more" if len(pids) > _NAMED else ""
    return f"process {named}{more}" if len(pids) == 1 else f"processes {named}{more}"
