"""Commands as a user would type them: shown, run by a shell, and shown with their answer."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any

from cluster.patience import Patience

POLL_SECONDS = 0.2
WAIT_SECONDS = 60.0
COMMAND_SECONDS = 630.0
LONGEST_SECONDS = 600.0
"""What changes all the time is not waited for longer than this before the last 60 spare seconds."""
LAST_SEEN = 1500


class ClaimError(Exception):
    """A command failed, or its answer never was what is claimed."""


class EndedError(Exception):
    """The shell was ended before this command."""


def say(text: str = "") -> None:
    """Print a line of the demo at once."""
    print(text, flush=True)


class Curtain:
    """Keeps what is said behind it, until it is opened."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: list[str] | None = []

    def say(self, text: str = "") -> None:
        """Keep a line, or print it once the curtain is open."""
        with self._lock:
            if self._kept is None:
                say(text)
            else:
                self._kept.append(text)

    def open(self) -> None:
        """Print all that was said so far."""
        with self._lock:
            for text in self._kept or ():
                say(text)
            self._kept = None


class Shell:
    """Runs command lines in the project's root with an environment of its own, such as KUBECONFIG and PATH; ``say`` shows text."""

    def __init__(
        self, root: Path, environment: Mapping[str, str], say: Callable[[str], None] = say
    ) -> None:
        self.say = say
        self._root = root
        self._environment = os.environ | environment
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def end(self) -> None:
        """Kill the command that runs, and let none begin any more; for another thread."""
        with self._lock:
            self._ended = True
            if self._process:
                _kill(self._process)

    def run(self, command: str) -> str:
        """Show and run a command and return its output. Raises ClaimError when it fails."""
        output = self._output(command)
        self._show(command, output)
        return output

    def until(self, command: str, wanted: Callable[[str], bool], what: str) -> str:
        """Run a command until its output is as wanted; show and return the last output. ``what`` says what is wanted.

        Raises ClaimError, after showing the last output, when the output is not so in time.
        """
        output, problem = self._repeat(command, wanted, what)
        self._show(command, output)
        if problem:
            raise ClaimError(problem)
        return output

    def until_logged(self, logs: str, lines: int, wanted: Callable[[str], bool], what: str) -> None:
        """Follow a log until its last ``lines`` are as wanted, and show them as the answer to ``logs``, a `kubectl logs` command.

        Raises ClaimError, after showing the last lines, when they are not so in time.
        """
        command = f"{logs} --tail={lines}"
        output, problem = self._follow(
            f"{command} --follow",
            lambda log: "".join(log.splitlines(keepends=True)[-lines:]),
            wanted,
            what,
        )
        self._show(command, output)
        if problem:
            raise ClaimError(problem)

    def wait(
        self, get: str, name: str, wanted: Callable[[dict[str, Any]], bool], what: str
    ) -> None:
        """Watch the object of this name of those that ``get`` prints, a `kubectl get` command, until it is as wanted; show nothing.

        It is selected from the list: kubectl drops a change between its first look and its watch when it is given a name.
        Raises ClaimError with the last object when it is not so in time.
        """
        output, problem = self._follow(
            f"{get} --field-selector=metadata.name={name} -o json --watch",
            _last_object,
            lambda text: bool(text) and wanted(json.loads(text)),
            what,
        )
        if problem:
            raise ClaimError(f"{problem}; last seen: {output.strip()[-LAST_SEEN:] or 'nothing'}")

    def _follow(
        self, command: str, last: Callable[[str], str], wanted: Callable[[str], bool], what: str
    ) -> tuple[str, str]:
        """Read what a command prints as it goes, and start it again when it ends, until the ``last`` part is as wanted.

        Return that part and what is wrong with it, as `_repeat` does.
        """
        began, patience, output = time.monotonic(), Patience(WAIT_SECONDS), ""
        while True:
            with self._running(f"{command} 2>&1") as process:
                printed = b""
                while chunk := _read(process, patience):
                    printed += chunk
                    before, output = output, last(printed.decode(errors="replace"))
                    if wanted(output):
                        return output, ""
                    if output != before and time.monotonic() - began < LONGEST_SECONDS:
                        patience = Patience(WAIT_SECONDS)
            if patience.ended:
                return output, f"still not after {time.monotonic() - began:.0f} s: {what}"
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _running(self, command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A command in a session of its own, which ends with the block. Raises EndedError."""
        with ExitStack() as resources:
            with self._lock, _interrupted_later():
                if self._ended:
                    raise EndedError(command)
                self._process = process = subprocess.Popen(
                    ["/bin/sh", "-c", command],
                    cwd=self._root,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                resources.enter_context(process)
                resources.callback(_kill, process)
            yield process

    def _repeat(self, command: str, wanted: Callable[[str], bool], what: str) -> tuple[str, str]:
        """Return the last output, or the error in its place, and what is wrong with it: nothing, or that time ran out.

        Time runs out after 60 spare seconds (`cluster.patience`) in which the output did not change.
        """
        began, patience, output = time.monotonic(), Patience(WAIT_SECONDS), ""
        while True:
            before = output
            try:
                output = self._output(command)
                if wanted(output):
                    return output, ""
            except ClaimError as error:
                output = str(error)
            if output != before and time.monotonic() - began < LONGEST_SECONDS:
                patience = Patience(WAIT_SECONDS)
            elif patience.ended:
                return output, f"still not after {time.monotonic() - began:.0f} s: {what}"
            time.sleep(POLL_SECONDS)

    def _output(self, command: str) -> str:
        with self._running(command) as process:
            try:
                output, errors = process.communicate(timeout=COMMAND_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise ClaimError(
                    f"`{command}` did not end within {COMMAND_SECONDS:.0f} s"
                ) from error
        if process.returncode:
            raise ClaimError(
                f"`{command}` ended with {process.returncode}: {errors.decode().strip()}"
            )
        return output.decode()

    def _show(self, command: str, output: str) -> None:
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        self.say(f"  {bold}$ {command}{plain}")
        self.say(
            textwrap.indent(output.rstrip("\n"), "    ") if output.strip() else "    (no output)"
        )


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a SIGINT that comes within the block at its end, so that nothing is started and not known."""
    if current_thread() is not main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            raise KeyboardInterrupt


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command with all that it started, unless it ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _read(process: "subprocess.Popen[bytes]", patience: Patience) -> bytes:
    """Return what a process printed next; nothing at its end, or when patience ended."""
    assert process.stdout is not None
    while not patience.ended:
        if select.select([process.stdout], [], [], POLL_SECONDS)[0]:
            return os.read(process.stdout.fileno(), 1 << 16)
    return b""


def _last_object(text: str) -> str:
    """Return the last whole object of those that `kubectl get -o json --watch` printed, if there is one."""
    return next(reversed(re.findall(r"^\{.*?^\}", text, re.DOTALL | re.MULTILINE)), "")
