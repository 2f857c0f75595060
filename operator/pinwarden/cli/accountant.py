"""`pinwarden accountant`: the accountant of shared memory on a node."""

import argparse
import logging
import sys
from typing import Any

from pinwarden.cli import host_paths, log_format, rlimits


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "accountant", help="account the shared memory of pods, and create the objects of groups"
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="the agent follows local files (--config) instead of an API server",
    )
    parser.add_argument(
        "--shared-memory",
        default="0",
        metavar="BYTES",
        help="memory for objects of groups with management: Create, such as 2Gi; reserve it in the "
        "kubelet's systemReserved (default: 0, none)",
    )
    host_paths.add_options(parser, "--cgroup-root", "--proc-root", "--state-dir", "--run-dir")
    log_format.add_option(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pinwarden.api.quantity import Quantity
    from pinwarden.node.accountant import daemon
    from pinwarden.node.state.config_path import config_path

    log_format.configure(options.log_format)
    rlimits.allow_all()
    try:
        budget = Quantity(options.shared_memory).bytes
    except ValueError as error:
        sys.stderr.write(f"pinwarden accountant: --shared-memory: {error}\n")
        return 2
    settings = daemon.AccountantSettings(
        configuration=config_path(options.state_dir, local=options.local),
        run_dir=options.run_dir,
        cgroup_root=options.cgroup_root,
        proc_root=options.proc_root,
        budget=budget,
    )
    try:
        daemon.run(settings)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).critical(
            "the accountant failed; objects and mappings stay", exc_info=True
        )
        sys.stderr.write(f"pinwarden accountant: {error}\n")
        return 1
    return 0
