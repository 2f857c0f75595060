"""`pinwarden nri`: puts the gate into containers through the container runtime's NRI."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from pinwarden.cli import host_paths, log_format

SOCKET = Path("/var/run/nri/nri.sock")


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "nri", help="put the gate into containers when the container runtime creates them"
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=SOCKET,
        metavar="PATH",
        help=f"the runtime's NRI socket (default: {SOCKET})",
    )
    parser.add_argument(
        "--mode",
        choices=("All", "Governed", "Labelled"),
        default="Governed",
        help="which containers get the gate: all, those of pods with limits or not known yet in a "
        "limited namespace, or those of pods with limits or the label pinwarden.io/gate "
        "(default: Governed)",
    )
    parser.add_argument(
        "--runtime-handlers",
        default="runc,crun,nvidia",
        metavar="NAMES",
        help="the handlers of RuntimeClasses that run containers on the node's own kernel "
        "(default: runc,crun,nvidia)",
    )
    parser.add_argument(
        "--toleration-annotation",
        default="",
        metavar="KEY",
        help="reject a container that cannot get the gate, unless its pod has this annotation "
        "(default: start the container ungated)",
    )
    parser.add_argument(
        "--namespace",
        default=os.environ.get("POD_NAMESPACE", ""),
        help="the namespace of pinwarden, whose pods are never gated (default: $POD_NAMESPACE)",
    )
    host_paths.add_options(parser, "--state-dir", "--run-dir")
    log_format.add_option(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pinwarden.node.linux.prlimit import prlimit_memlock

    inherited = prlimit_memlock(os.getpid())  # first, because the agent can lower it soon

    from pinwarden.node.nri import daemon
    from pinwarden.node.nri.adjustment import GateMode, Rules
    from pinwarden.node.state.config_path import config_path

    log_format.configure(options.log_format)
    settings = daemon.NriSettings(
        socket=options.socket,
        configuration=config_path(options.state_dir, local=False),
        run_dir=options.run_dir,
        rules=Rules(
            GateMode(options.mode),
            options.namespace,
            os.uname().machine,
            frozenset(options.runtime_handlers.split(",")),
            options.toleration_annotation,
            inherited,
        ),
    )
    try:
        daemon.run(settings)
    except OSError as error:
        logging.getLogger(__name__).critical(
            "the NRI plugin failed; new containers do not get the gate", exc_info=True
        )
        sys.stderr.write(f"pinwarden nri: {error}\n")
        return 1
    return 0
