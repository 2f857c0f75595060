"""Computes the `RLIMIT_MEMLOCK` of each process under all constraints on the process (P13).

A pod has many processes, and the kernel has one number per process. So the room of a constraint is
allocated to its processes, and allocated again as use changes. For a process i, with all amounts in
bytes:

- use_i = VmLck + VmPin: the amount that counts against a constraint (P2),
- own_i = max(VmLck, VmPin), because the kernel compares `mm->locked_vm` and `mm->pinned_vm`
  separately,
- left_c = max(0, limit_c - sum of use over the members of constraint c),
- share_c = left_c with Share; left_c / number of members, in whole pages, with Reserve,
- allowance_i = own_i + the smallest share_c of its constraints, in whole pages (the kernel shifts
  the rlimit right by `PAGE_SHIFT`, so part of a page allows nothing),
- cap_i = the larger of the original hard limit and the largest grant on the process (P14),
- hard_i = min(allowance_i, cap_i),
- soft_i = min(the larger of the original soft limit and the grant, hard_i).

If the seccomp gate enforces the sum exactly, each process gets the whole limit: allowance_i =
max(own_i, the smallest limit_c). So the kernel denies nothing that the gate allows, and `ulimit -l`
shows the pod's limit.

Consequences:

- A limit below the current use leaves own_i: nothing is evicted and nothing more is allowed (P11).
- A raised limit reaches running processes with the next allocation (P12). Without a constraint, the
  original limits return unchanged.
- The result depends on use and original limits, never on applied limits: a second run changes
  nothing.
- With Share, a fitting pin is never denied because of another process (P5).
- With Reserve, let the use fit the limit, and let each member use one of VmLck and VmPin only. Then
  the sum of the hard limits does not exceed the limit.

The rlimit cannot enforce these cases. They are reported, and not called enforced (H1):

- With Share, processes with pins at the same time can overshoot until the next allocation. With
  Reserve, a process forked since the last allocation can do so.
- A process with both VmLck and VmPin has room in the smaller one, which can exceed the allowance.
- `CAP_IPC_LOCK` in the initial user namespace ignores the rlimit; `CAP_SYS_RESOURCE` raises it.
- `io_uring` counts in VmPin, but the kernel compares `user->locked_vm`, shared by all pods with one
  uid.
- Processes with a shared address space each show its whole use. The sums are then too high, so too
  little is allocated, never too much.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pinwarden.api.pinlimit import Contention
from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.constraints import Constraint


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """The use of one process and its original limits, in bytes.

    `exact`: a gate enforces its sums.
    """

    key: ProcessKey
    locked: int
    pinned: int
    original_soft: int
    original_hard: int
    exact: bool = False

    @property
    def use(self) -> int:
        """The bytes counted against a constraint (P2)."""
        return self.locked + self.pinned

    @property
    def own(self) -> int:
        """The lowest limit at or above both amounts. The kernel compares them separately."""
        return max(self.locked, self.pinned)


def allocate(
    processes: Iterable[ProcessUsage], constraints: Iterable[Constraint], *, page_size: int
) -> dict[ProcessKey, Limits]:
    """Return the limits of every process by the formula above. `page_size` is in bytes.

    Raises KeyError if a member of a constraint is not in `processes`: its use is unknown, not zero
    (H2).
    """
    table = {process.key: process for process in processes}
    smallest_share = dict.fromkeys(table, UNLIMITED)
    grants: dict[ProcessKey, int] = {}
    for constraint in constraints:
        share = _share(constraint, table, page_size)
        for key in constraint.members:
            own = table[key].own
            room = max(0, constraint.limit.limit - own) if table[key].exact else share
            smallest_share[key] = min(smallest_share[key], room)
            if constraint.limit.grant is not None:
                grants[key] = max(grants.get(key, 0), constraint.limit.grant)
    return {
        key: _limits(process, smallest_share[key], grants.get(key), page_size)
        for key, process in table.items()
    }


def _share(constraint: Constraint, table: dict[ProcessKey, ProcessUsage], page_size: int) -> int:
    left = max(0, constraint.limit.limit - sum(table[key].use for key in constraint.members))
    if constraint.limit.contention is Contention.SHARE or not constraint.members:
        return left
    return _whole_pages(left // len(constraint.members), page_size)


def _limits(process: ProcessUsage, share: int, grant: int | None, page_size: int) -> Limits:
    allowance = UNLIMITED if share == UNLIMITED else _whole_pages(process.own + share, page_size)
    cap = process.original_hard if grant is None else max(process.original_hard, grant)
    hard = min(allowance, cap)
    return Limits(min(max(process.original_soft, grant or 0), hard), hard)


def _whole_pages(amount: int, page_size: int) -> int:
    return amount - amount % page_size
