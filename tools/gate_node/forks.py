"""Starts processes in milliseconds: each is forked from an interpreter with all imports done.

The fork server is a separate process, because its client may have threads. A request has a
function's name, its arguments, the standard descriptors and a pipe. On the pipe the server sends
the process id first, and the exit code at the end.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_REQUEST_BYTES = 1 << 16
_ANSWER_BYTES = 4
_STANDARD = 3


class Forked:
    """A forked process with the used part of the interface of `subprocess.Popen`."""

    def __init__(self, stdin: int, stdout: int, answers: int) -> None:
        """Take over three pipe ends. Raises ChildProcessError if the server has ended."""
        # as with Popen, the caller closes these
        self.stdin, self.stdout = open(stdin, "w"), open(stdout)  # noqa: SIM115
        self._answers = answers
        self.pid = _receive(answers)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, or the negative number of a signal.

        Raises subprocess.TimeoutExpired after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = _receive(self._answers)
            os.close(self._answers)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless the process has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The client. The server is `python -m MODULE DESCRIPTOR`, which calls `serve`.

    The server ends with its client.
    """

    def __init__(self, module: str, paths: Sequence[Path]) -> None:
        """`paths` are the first folders of the server's import path."""
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": ":".join(map(str, paths))},
                pass_fds=[theirs.fileno()],
            )

    def start(self, function: str, *arguments: Any, stderr: int = 2) -> Forked:
        """Run a function of the module in a new process, with pipes as standard input and output.

        The arguments are JSON values. Raises OSError.
        """
        (stdin, input_end), (output_end, stdout), (answers, status) = (
            os.pipe() for _ in range(_STANDARD)
        )
        try:
            request = json.dumps([function, *arguments]).encode()
            socket.send_fds(self._requests, [request], [stdin, stdout, stderr, status])
        finally:
            for descriptor in (stdin, stdout, status):
                os.close(descriptor)
        return Forked(input_end, output_end, answers)


def serve(descriptor: int) -> tuple[str, list[Any]]:
    """Fork for each request on a socket. Return the function's name and arguments in the child.

    When the client has ended, kill its remaining processes and exit.
    """
    requests = socket.socket(fileno=descriptor)
    # by pidfd: process id, and the pipe for its exit code
    children: dict[int, tuple[int, int]] = {}
    events = select.poll()
    events.register(requests, select.POLLIN)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    while True:
        for ready, _ in events.poll():
            if ready in children:
                events.unregister(ready)
                pid, status = children.pop(ready)
                _send(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(status)
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, _STANDARD + 1)
            if not message:
                for pidfd in children:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                raise SystemExit
            *standard, status = descriptors
            if pid := os.fork():
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid, status
                events.register(pidfd, select.POLLIN)
                _send(status, pid)
                for given in standard:
                    os.close(given)
            else:
                requests.detach()
                signal.signal(signal.SIGINT, interrupted)
                for number, given in enumerate(standard):
                    os.dup2(given, number)
                os.closerange(_STANDARD, os.sysconf("SC_OPEN_MAX"))
                function, *arguments = json.loads(message)
                return function, arguments


def _send(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):
        os.write(pipe, number.to_bytes(_ANSWER_BYTES, sys.byteorder, signed=True))


def _receive(pipe: int) -> int:
    answer = os.read(pipe, _ANSWER_BYTES)
    if not answer:
        raise ChildProcessError("the fork server has ended")
    return int.from_bytes(answer, sys.byteorder, signed=True)
