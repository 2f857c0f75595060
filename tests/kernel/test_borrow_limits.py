"""Accountant and gate: strangers, and mappings above a limit, are really denied (M2, M8)."""

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gate_node.node import CGROUP, Node, Pod
from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.pinlimit import Level
from pinwarden.node.accountant.accountant import Accountant
from pinwarden.node.state.accountant_status import NAME, save

from .backings import CASES, SIZE, kinds
from .shared_nodes import PROGRAM, group


class Gated:
    """A process of a gated pod; see sharing.py."""

    def __init__(self, pod: Pod) -> None:
        self._process = pod.run([sys.executable, "-IS", str(PROGRAM)], user=0)
        self.pid = self._process.pid
        assert self._read() == "ready"

    def __call__(self, expression: str) -> int:
        assert self._process.stdin is not None
        print(expression, file=self._process.stdin, flush=True)
        answer = self._read()
        if answer.startswith("OSError"):
            raise OSError(int(answer.split()[1]), expression)
        return int(answer)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def look(node: Node, accountant: Accountant) -> None:
    """Run a round of the accountant; the gate has the result by its next configuration."""
    accountant.tick()
    save(node.run_dir / NAME, accountant.status)


def ask(node: Node, accountant: Accountant, asked: dict[str, Any], *pods: Pod) -> None:
    """Accountant and gate know these pods and the group, and what stands for it."""
    spec = {"pods": [{"uid": pod.uid} for pod in pods], "groups": [asked]}
    accountant.configure(NodePinConfigSpec.model_validate(spec))
    look(node, accountant)
    node.configure(**spec)


@pytest.mark.rule(
    "M2", "M8", level="Converge", backing="tmpfs posixShm sysvShm hugetlbfs file memfd dmabuf"
)
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.usefixtures("mounts")
def test_stranger_and_mappings_above_the_limit_are_denied(gated: Node, kind: str) -> None:
    case = CASES[kind]
    member, other = gated.pod(), gated.pod()
    a, b = Gated(member), Gated(other)
    accountant = Accountant(
        cgroup_root=CGROUP, proc_root=Path("/proc"), run_dir=gated.run_dir, budget=0
    )

    def limit(amount: int) -> None:
        asked = group(
            case.backing, member.uid, members=[{"pods": [member.uid], "borrowLimit": amount}]
        )
        ask(gated, accountant, asked, member, other)

    handle = case.make(a)
    limit(SIZE // 2)
    for process, refusal in ((a, errno.ENOMEM), (b, errno.EACCES)):
        with pytest.raises(OSError, match=r".") as refused:
            case.map(process, a, handle, 1)
        assert refused.value.errno == refusal
    limit(SIZE)
    case.map(a, a, handle, 1)
    gated.until(lambda: gated.status.group_denials.get("g") == {member.uid: 1, other.uid: 1})
    look(gated, accountant)
    (report,) = accountant.status.groups
    (borrower,) = report.borrowers
    assert (borrower.pod, borrower.mapped, borrower.level) == (member.uid, SIZE, Level.CONVERGE)
    assert borrower.denials == 1


@pytest.mark.rule(
    "M10", level="Converge", backing="tmpfs posixShm sysvShm hugetlbfs file memfd dmabuf"
)
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.usefixtures("mounts")
def test_draining_group_takes_no_new_borrower(gated: Node, kind: str) -> None:
    case = CASES[kind]
    first, late = gated.pod(), gated.pod()
    a, b = Gated(first), Gated(late)
    accountant = Accountant(
        cgroup_root=CGROUP, proc_root=Path("/proc"), run_dir=gated.run_dir, budget=0
    )
    handle = case.make(a)
    case.map(a, a, handle, 1)
    ask(gated, accountant, group(case.backing, first.uid, late.uid, draining=True), first, late)
    with pytest.raises(OSError, match=r".") as refused:
        case.map(b, a, handle, 1)
    assert refused.value.errno == errno.EACCES
