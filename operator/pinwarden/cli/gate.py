"""`pinwarden gate` and `pinwarden holder`: the two programs of the seccomp gate."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from pinwarden.cli import host_paths, log_format, rlimits


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommands."""
    gate = commands.add_parser(
        "gate", help="answer the pinning calls of pods with a seccomp profile of pinwarden"
    )
    gate.add_argument(
        "--local",
        action="store_true",
        help="the agent follows local files (--config) instead of an API server",
    )
    host_paths.add_options(gate, "--cgroup-root", "--proc-root", "--state-dir")
    gate.set_defaults(run=_gate)
    holder = commands.add_parser("holder", help="keep the seccomp listeners for the gate")
    holder.add_argument(
        "--profiles",
        type=Path,
        metavar="DIR",
        help="the kubelet's seccomp folder; write the profiles there first",
    )
    holder.set_defaults(run=_hold)
    for parser in (gate, holder):
        host_paths.add_options(parser, "--run-dir")
        log_format.add_option(parser)


def _gate(options: argparse.Namespace) -> int:
    from pinwarden.node.gate import daemon
    from pinwarden.node.state.config_path import config_path

    log_format.configure(options.log_format)
    rlimits.allow_all()
    settings = daemon.GateSettings(
        configuration=config_path(options.state_dir, local=options.local),
        run_dir=options.run_dir,
        cgroup_root=options.cgroup_root,
        proc_root=options.proc_root,
    )
    try:
        daemon.run(settings)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).critical(
            "the gate failed; gated calls wait for a new gate", exc_info=True
        )
        sys.stderr.write(f"pinwarden gate: {error}\n")
        return 1
    return 0


def _hold(options: argparse.Namespace) -> int:
    from pinwarden.node.holder import daemon, protocol

    log_format.configure(options.log_format)
    rlimits.allow_all()
    try:
        if options.profiles is not None:
            from pinwarden.node.seccomp.profiles import install

            for path in install(options.profiles):
                logging.getLogger(__name__).error(
                    "%s differs from the profile of this version and is left unchanged", path
                )
        daemon.run(
            options.run_dir / protocol.RUNTIME_SOCKET, options.run_dir / protocol.GATES_SOCKET
        )
    except OSError as error:
        sys.stderr.write(f"pinwarden holder: {error}\n")
        return 1
    return 0
