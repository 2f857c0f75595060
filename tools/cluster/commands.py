"""Commands that build pieces. None outlives the build, however that ends.

A command leads a process group of its own, so that a Ctrl-C at the terminal reaches Python alone.
Python ends the group when it stops waiting for the command, and :func:`stopped` ends the commands
of all threads. The kernel kills a command whose parent is killed (setpriv(1), --pdeathsig).
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.errors import ClusterError
from cluster.scratch import scratch

GRACE_SECONDS = 2.0
TAIL_CHARACTERS = 3000
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")

_lock = threading.Lock()
_running: "set[subprocess.Popen[str]]" = set()
_stopping = False


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    consume: Callable[[str], bool] | None = None,
) -> str:
    """Run a command and return its standard output; its temporary files are removed, also if it was
    killed.

    ``consume`` takes each line of standard error as it comes and returns whether it says nothing
    but progress.

    Raises ClusterError with the end of the messages when the command fails, is missing, or is ended
    by :func:`stopped`.
    """
    with scratch("command") as folder:
        return _run(
            argv,
            cwd,
            {**(os.environ if env is None else env), "TMPDIR": str(folder)},
            stdin,
            consume,
        )


def _run(
    argv: Sequence[str | Path],
    cwd: Path | None,
    env: Mapping[str, str],
    stdin: str,
    consume: Callable[[str], bool] | None,
) -> str:
    with _lock:
        check_stopped()
        process = subprocess.Popen(
            [*WITH_PARENT, *argv],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if consume else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        _running.add(process)
    try:
        output, messages = _follow(process, consume) if consume else process.communicate(stdin)
    except BaseException:
        _end([process])
        raise
    finally:
        with _lock:
            _running.discard(process)
    if process.returncode:
        check_stopped()
        end = (messages or output).strip()[-TAIL_CHARACTERS:]
        raise ClusterError(
            f"{' '.join(map(str, argv))[:200]}: exit status {process.returncode}\n{end}"
        )
    return output


def check_stopped() -> None:
    """Raise ClusterError while the commands of all threads are being ended."""
    if _stopping:
        raise ClusterError("interrupted")


@contextmanager
def stopped() -> Iterator[None]:
    """End all commands; while the block runs, no thread starts another."""
    global _stopping
    with _lock:
        _stopping = True
        running = list(_running)
    try:
        _end(running)
        yield
    finally:
        _stopping = False


def _follow(process: "subprocess.Popen[str]", consume: Callable[[str], bool]) -> tuple[str, str]:
    """Pass on each line of standard error until the command ends; return no output and what is left
    of the lines.
    """
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.close()
    with process.stderr as lines:
        messages = "".join(line for line in lines if not consume(line))
    process.wait()
    return "", messages


def _end(processes: "Iterable[subprocess.Popen[str]]") -> None:
    """End process groups: SIGTERM, and SIGKILL 2 seconds later."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    for process in alive:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
