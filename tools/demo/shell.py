"""Commands as a user would type them: shown, run by a shell, and shown with their answer."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

POLL_SECONDS = 0.3
COMMAND_SECONDS = 330.0


class ClaimError(Exception):
    """A command failed, or its answer never was what is claimed."""


def say(text: str = "") -> None:
    """Print a line of the demo at once."""
    print(text, flush=True)


class Shell:
    """Runs command lines in the project's root with an environment of its own, such as KUBECONFIG and PATH."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self._root = root
        self._environment = os.environ | environment

    def run(self, command: str) -> str:
        """Show and run a command and return its output. Raises ClaimError when it fails."""
        output = self._output(command)
        self._show(command, output)
        return output

    def until(self, command: str, wanted: Callable[[str], bool], seconds: float = 60.0) -> str:
        """Run a command again and again until its output is as wanted; show and return the last output.

        Raises ClaimError, after showing the last output, when it is not so in time.
        """
        output, done = self._repeat(command, wanted, seconds)
        self._show(command, output)
        if not done:
            raise ClaimError(f"still not so after {seconds:.0f} s")
        return output

    def wait(self, command: str, wanted: Callable[[str], bool], seconds: float = 60.0) -> None:
        """The same, showing nothing. Raises ClaimError when it is not so in time."""
        if not self._repeat(command, wanted, seconds)[1]:
            raise ClaimError(f"still not so after {seconds:.0f} s")

    def _repeat(self, command: str, wanted: Callable[[str], bool], seconds: float) -> tuple[str, bool]:
        """The last output, or the problem instead of one, and whether it is as wanted."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                output = self._output(command)
                if wanted(output):
                    return output, True
            except ClaimError as error:
                output = str(error)
            if time.monotonic() > deadline:
                return output, False
            time.sleep(POLL_SECONDS)

    def _output(self, command: str) -> str:
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClaimError(f"`{command}` did not end within {COMMAND_SECONDS:.0f} s") from error
        if done.returncode:
            raise ClaimError(f"`{command}` ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _show(self, command: str, output: str) -> None:
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        say(f"  {bold}$ {command}{plain}")
        say(textwrap.indent(output.rstrip("\n"), "    ") if output.strip() else "    (no output)")
