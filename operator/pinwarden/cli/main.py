"""The entry point of `pinwarden`. Each subcommand has a module; `gate` also has `holder`.

`add` of a module declares the arguments and the function to run. Exit codes: 0 done, 1 failed, 2
wrong usage. A subcommand imports its libraries when it runs: the agent never loads the operator's.
"""

import argparse
from collections.abc import Callable, Sequence

from pinwarden import __version__
from pinwarden.cli import (
    accountant,
    agent,
    crds,
    ebpf,
    gate,
    nri,
    operator,
    probe,
    status,
    uninstall,
)

SUBCOMMANDS = (operator, agent, gate, nri, ebpf, accountant, status, probe, crds, uninstall)


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
