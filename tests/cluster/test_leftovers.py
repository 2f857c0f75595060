"""An interrupted, killed or failed run leaves no process, mount, namespace, socket or folder.

A namespace lives as long as a process or a mount of it, a listening socket as long as its process.
The runs are the command of `make demo`. All their processes inherit a word in the environment.
"""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.install import ROOT
from cluster.scratch import scratch

from ..waiting import until

MARK = "PINWARDEN_TEST_RUN"
CONTROL_PLANE = "Starting a real cluster"
BOOT = "Installing pinwarden"
CLAIMS = "1. A process that exceeds its limit"
SMALL_DISK = 'mount -t tmpfs -o size=64m small "$TMPDIR"; exec "$@"'


class Run:
    """One run of the demo, in a session of its own, with a temporary folder of its own."""

    def __init__(self, folder: Path, *before: str) -> None:
        self.folder = folder
        variables = {"TMPDIR": str(folder), "PYTHONPATH": "operator:tools", MARK: str(uuid.uuid4())}
        self._mark = f"{MARK}={variables[MARK]}".encode()
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "demo"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
            | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> None:
        """Read what the run prints until a line has the text."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return
        raise AssertionError(f"the run ended without {text!r}:\n{''.join(lines)[-3000:]}")

    def processes(self) -> list[str]:
        """Return the command lines of the run's processes that exist now."""
        return [
            (environment.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            for environment in Path("/proc").glob("[0-9]*/environ")
            if self._is_ours(environment)
        ]

    def _is_ours(self, environment: Path) -> bool:
        try:
            return self._mark in environment.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            return False


@pytest.fixture
def mounts() -> Iterator[None]:
    before = _mounts()
    yield
    assert _mounts() <= before


def _mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("moment", [CONTROL_PLANE, BOOT, CLAIMS])
def test_interrupted_run_leaves_nothing(tmp_path: Path, moment: str) -> None:
    run = Run(tmp_path)
    run.read_until(moment)
    os.killpg(run.process.pid, signal.SIGINT)
    output, _ = run.process.communicate()
    assert "interrupted" in output
    assert "Traceback" not in output
    assert run.process.returncode == 130
    assert run.processes() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("moment", [BOOT, CLAIMS])
def test_killed_run_leaves_folders_alone_and_the_next_one_removes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = Run(tmp_path)
    run.read_until(moment)
    run.process.kill()
    run.process.communicate()
    until(lambda: run.processes() == [], "the processes of the killed run have ended")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch("cluster"), scratch("control-plane"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("mounts")
def test_run_on_a_full_disk_reports_it_and_leaves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "unshare", "--mount", "sh", "-ec", SMALL_DISK, "sh")
    output, _ = run.process.communicate()
    assert "No space left on device" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert run.process.returncode == 1
    assert run.processes() == []
