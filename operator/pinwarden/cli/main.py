"""`pinwarden`: a module of this package for each subcommand (`gate` has `holder` too). Its `add` declares arguments and what runs it.

Exit codes are those that kubectl users expect: 0 done, 1 failed, 2 wrong usage. A subcommand imports what it needs when it runs, so that
the agent never carries the operator's libraries.
"""

import argparse
from collections.abc import Callable, Sequence

from pinwarden import __version__
from pinwarden.cli import accountant, agent, crds, gate, operator, probe, status, uninstall

SUBCOMMANDS = (operator, agent, gate, accountant, status, probe, crds, uninstall)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="pinwarden", description="Limits pinned memory per Kubernetes pod."
    )
    parser.add_argument("--version", action="version", version=f"pinwarden {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for subcommand in SUBCOMMANDS:
        subcommand.add(commands)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)
