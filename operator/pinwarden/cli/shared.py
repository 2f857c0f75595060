"""`pinwarden shared`: the accountant of shared memory on a node."""

import argparse
import logging
import sys
from typing import Any

from pinwarden.cli import descriptors, folders, logs


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "shared", help="account the shared memory of pods, and make the objects of groups"
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
        help="how much memory objects may take that groups with management: Create make, such as 2Gi; set it aside in the kubelet's "
        "systemReserved (default: 0, none)",
    )
    folders.add_options(parser, "--cgroup-root", "--proc-root", "--state-dir", "--run-dir")
    logs.add_option(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pinwarden.agent.configuration import kept_in
    from pinwarden.agent.shared import daemon
    from pinwarden.api.quantity import Quantity

    logs.configure(options.log_format)
    descriptors.allow_all()
    try:
        budget = Quantity(options.shared_memory).bytes
    except ValueError as error:
        sys.stderr.write(f"pinwarden shared: --shared-memory: {error}\n")
        return 2
    settings = daemon.Settings(
        configuration=kept_in(options.state_dir, local=options.local),
        run_dir=options.run_dir,
        cgroup_root=options.cgroup_root,
        proc_root=options.proc_root,
        budget=budget,
    )
    try:
        daemon.run(settings)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).critical(
            "the accountant failed; objects and what is borrowed stay", exc_info=True
        )
        sys.stderr.write(f"pinwarden shared: {error}\n")
        return 1
    return 0
