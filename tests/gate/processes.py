"""Programs of this folder in pods, and how tests talk with them."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gate_node.node import NOBODY, Pod, Process

HERE = Path(__file__).parent
PAGE = 4096


def send(process: Process, line: str) -> None:
    """An order."""
    assert process.stdin is not None
    print(line, file=process.stdin, flush=True)


def hear(process: Process) -> str:
    """The next line that it says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: Process, line: str) -> str:
    send(process, line)
    return hear(process)


def calls_of(loopers: Process) -> int:
    """Return how many calls the processes of looper.py have made."""
    return int(ask(loopers, "").split()[0])


def start(
    pod: Pod, program: str, *arguments: object, user: int = NOBODY, profile: str = "unconfined"
) -> Process:
    """A Python program of this folder, once it is ready."""
    process = pod.run([str(HERE / program), *map(str, arguments)], user=user, profile=profile)
    assert hear(process) == "ready"
    return process


@contextmanager
def compiled(source: str, *options: str) -> Iterator[Path]:
    """A C program of this folder, where everyone may execute it."""
    with tempfile.TemporaryDirectory(prefix="pinwarden-") as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / Path(source).stem
        subprocess.run(
            ["gcc", "-O1", "-o", program, HERE / source, *(options or ["-lpthread"])], check=True
        )
        yield program


def listeners(pid: int) -> int:
    """Return the number of listeners of a program, without files with `seccomp` in their path."""
    folder = Path(f"/proc/{pid}/fd")
    return sum(
        os.path.realpath(each).endswith("anon_inode:seccomp notify") for each in folder.iterdir()
    )


def takes_sigterm(pid: int) -> bool:
    """Whether a program is past its start."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)
