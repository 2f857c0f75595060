"""Pods' cgroups with processes in them that share memory, and an accountant over both."""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from pinwarden.api.nodepinconfig import BorrowReport, GroupReport, NodePinConfigSpec
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.node.accountant.accountant import Accountant
from pinwarden.node.linux.cgroupfs import member_pids

from .nodes import CGROUP, KUBEPODS, MIB, ONE

PAGE = os.sysconf("SC_PAGE_SIZE")
PROGRAM = Path(__file__).with_name("sharing.py")
FOLDER = Path("/run/pinwarden-test")


class Borrower:
    """A process of a pod; see sharing.py."""

    def __init__(self, cgroup: Path, *arguments: str) -> None:
        self._cgroup = cgroup
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        (cgroup / "cgroup.procs").write_text(str(self.pid))
        assert self._read() == "ready"

    def __call__(self, expression: str) -> int:
        assert self._process.stdin is not None
        print(expression, file=self._process.stdin, flush=True)
        answer = self._read()
        if answer.startswith("OSError"):
            raise OSError(int(answer.split()[1]), expression)
        return int(answer)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class SharedNode:
    """Pods' cgroups with borrowers in them, and an accountant."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._borrowers: list[Borrower] = []
        self._pods: list[str] = []
        self._groups: list[dict[str, Any]] = []
        self.start()

    def start(self, budget: int = 64 * MIB) -> None:
        """A new accountant, which knows nothing yet."""
        self.accountant = Accountant(
            cgroup_root=CGROUP, proc_root=Path("/proc"), run_dir=self._run_dir, budget=budget
        )
        self.configure(*self._groups)

    def pod(self, *arguments: str) -> tuple[str, Borrower]:
        uid = str(uuid.uuid4())
        directory = KUBEPODS / "burstable" / f"pod{uid}" / ONE
        directory.mkdir(parents=True)
        for above in (CGROUP, KUBEPODS, KUBEPODS / "burstable", directory.parent):
            (above / "cgroup.subtree_control").write_text("+memory")
        self._pods.append(uid)
        self._borrowers.append(Borrower(directory, *arguments))
        return uid, self._borrowers[-1]

    def join(self, pod: str, *arguments: str) -> Borrower:
        """One more process of the pod."""
        self._borrowers.append(Borrower(KUBEPODS / "burstable" / f"pod{pod}" / ONE, *arguments))
        return self._borrowers[-1]

    def kill(self, borrower: Borrower) -> None:
        """One process ends, and the pod stays."""
        borrower.end()
        self._borrowers.remove(borrower)

    def configure(self, *groups: dict[str, Any]) -> None:
        self._groups = list(groups)
        self.accountant.configure(NodePinConfigSpec.model_validate({"groups": list(groups)}))

    def report(self, uid: str = "g") -> GroupReport:
        """Of a round that is made now."""
        self.accountant.tick()
        return next(each for each in self.accountant.status.groups if each.uid == uid)

    def borrow(self, pod: str, group: str = "g") -> BorrowReport | None:
        return next((each for each in self.report(group).borrowers if each.pod == pod), None)

    def charge_of(self, pod: str) -> int:
        return int((KUBEPODS / "burstable" / f"pod{pod}" / "memory.current").read_text())

    def end(self, pod: str) -> None:
        """A pod as it is deleted: its processes end and its cgroup goes."""
        directory = KUBEPODS / "burstable" / f"pod{pod}"
        for borrower in [each for each in self._borrowers if each._cgroup.parent == directory]:
            borrower.end()
            self._borrowers.remove(borrower)
        assert not member_pids(directory / ONE)
        (directory / ONE).rmdir()
        directory.rmdir()
        self._pods.remove(pod)

    def close(self) -> None:
        for pod in list(self._pods):
            self.end(pod)
        for group in self._groups:
            self.configure({**group, "draining": True, "members": []})
            assert self.report(group["uid"]).phase is Phase.RELEASED


def group(backing: dict[str, Any], *pods: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "ns/g",
        "uid": "g",
        "backing": backing,
        "management": "Adopt",
        "accounting": "Borrow",
        "fairShare": "Borrow",
        "allowed": "/run/pinwarden-test",
        "members": [{"pods": list(pods)}],
        **more,
    }
