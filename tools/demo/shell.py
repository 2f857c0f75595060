"""Run commands in a shell and show them with their answers."""

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
"""Output that keeps changing extends a wait to at most this time."""
LAST_SEEN = 1500


class ClaimError(Exception):
    """A command failed, or its answer contradicts the claim."""


class EndedError(Exception):
    """The shell was ended before this command."""


def say(text: str = "") -> None:
    """Print a line of the demo at once."""
    print(text, flush=True)


class Curtain:
    """Keeps lines until it is opened."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: list[str] | None = []

    def say(self, text: str = "") -> None:
        """Keep a line, or print it if the curtain is open."""
        with self._lock:
            if self._kept is None:
                say(text)
            else:
                self._kept.append(text)

    def open(self) -> None:
        """Print all kept lines."""
        with self._lock:
            for text in self._kept or ():
                say(text)
            self._kept = None


class Shell:
    """Runs command lines in the project's root with this environment; `say` shows text."""

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
        """Kill the running command and start no other; called from another thread."""
        with self._lock:
            self._ended = True
            if self._process:
                _kill(self._process)

    def run(self, command: str) -> str:
        """Show and run a command and return its output. Raises ClaimError if it fails."""
        output = self._output(command)
        self._show(command, output)
        return output

    def until(self, command: str, wanted: Callable[[str], bool], what: str) -> str:
        """Repeat a command until its output is as wanted; show and return the last output.

        `what` describes the wanted output.

        Raises:
            ClaimError: time ran out; the last output is shown.
        """
        output, problem = self._repeat(command, wanted, what)
        self._show(command, output)
        if problem:
            raise ClaimError(problem)
        return output

    def until_logged(self, logs: str, lines: int, wanted: Callable[[str], bool], what: str) -> None:
        """Follow `logs`, a `kubectl logs` command, until the last `lines` are as wanted; show them.

        Raises:
            ClaimError: time ran out; the last lines are shown.
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
        """Watch the object of this name with `get`, a `kubectl get` command, until it is as wanted.

        A field selector chooses the object: with a name, kubectl loses changes between its first
        read and its watch.

        Raises:
            ClaimError: time ran out; the error has the last object.
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
        """Read the output of a command, restarted at its end, until the `last` part is as wanted.

        Return this part and a problem, as `_repeat` does.
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
        """Run a command in its own session until the end of the block. Raises EndedError."""
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
        """Return the last output or error, and a problem if time ran out.

        Time runs out after 60 spare seconds (`cluster.patience`) without a change of the output.
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
    """Delay the KeyboardInterrupt of a SIGINT to the end of the block."""
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
    """Kill a command and its children, unless it ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _read(process: "subprocess.Popen[bytes]", patience: Patience) -> bytes:
    """Return the next output of a process; nothing at its end, or when patience ended."""
    assert process.stdout is not None
    while not patience.ended:
        if select.select([process.stdout], [], [], POLL_SECONDS)[0]:
            return os.read(process.stdout.fileno(), 1 << 16)
    return b""


def _last_object(text: str) -> str:
    """Return the last whole object in the output of `kubectl get -o json --watch`, if any."""
    return next(reversed(re.findall(r"^\{.*?^\}", text, re.DOTALL | re.MULTILINE)), "")
