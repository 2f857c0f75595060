"""The entry point: exit codes, signals and messages."""

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from pinwarden.plugin.commands import ordered, parser
from pinwarden.plugin.errors import PluginError


def main() -> NoReturn:
    """Run the program; like kubectl, SIGPIPE and SIGINT end the program without a message."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a subcommand; return exit code 0, or 1 with a message on standard error."""
    options = parser().parse_args(ordered(arguments))
    module = importlib.import_module(f"pinwarden.plugin.{options.module}")
    try:
        module.run(options)
        sys.stdout.flush()
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0
