"""A child process with a log file, ended by its process id and never outliving its parent.

The child is its own process group, so that a Ctrl-C at the terminal reaches the parent alone, which
then ends the children in order. It asks the kernel for SIGKILL at its parent's death (prctl(2),
PR_SET_PDEATHSIG), so a killed test run leaves nothing behind. "Parent" is the thread that started
it: start children from a thread that lives on.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import ClusterError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_SECONDS = 2.0
TAIL_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request was in place
            os.kill(os.getpid(), signal.SIGKILL)

    return before_exec


class Child:
    """One program that can be started again with the same arguments; its log is appended to."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists now."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the running process; raises ClusterError when there is none."""
        if self._process is None or not self.running:
            raise ClusterError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the program; raises ClusterError when it runs already or cannot be executed."""
        if self.running:
            raise ClusterError(f"{self.name} is running already")
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    preexec_fn=_die_with(os.getpid()),
                )
            except OSError as error:
                raise ClusterError(f"{self.name} cannot be started: {error}") from error

    def kill(self) -> None:
        """End the process as a crash would (SIGKILL) and wait for its end; nothing when it is not
        running.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the process with SIGTERM, and with SIGKILL when it is still there 2 seconds later."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self) -> str:
        """Return the last lines of the log, at most 4096 bytes."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return log.read().decode(errors="replace")
