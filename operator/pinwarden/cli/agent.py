"""`pinwarden agent`: the node agent, as a daemon or to release all processes."""

import argparse
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from pinwarden.cli import host_paths, log_format, metrics, rlimits
from pinwarden.cli.host_paths import RUN_DIR

SOCKET = RUN_DIR / "agent.sock"
METRICS_PORT = 9464


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser("agent", help="run the node agent")
    parser.add_argument(
        "--node",
        metavar="NAME",
        help="name of the node (default: $NODE_NAME, else the host's name)",
    )
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="kubeconfig for the API server (default: the service account of the pod)",
    )
    origin.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="a file or directory to follow instead of an API server",
    )
    parser.add_argument(
        "--release",
        action="store_true",
        help="restore the original limits of every process, and end",
    )
    host_paths.add_options(parser, "--cgroup-root", "--proc-root", "--state-dir", "--run-dir")
    parser.add_argument(
        "--gates",
        choices=("auto", "rlimit", "none"),
        default="auto",
        help="auto: all that work on this node; rlimit: only this gate, or fail; "
        "none: observe only (default: auto)",
    )
    parser.add_argument(
        "--socket", type=Path, default=SOCKET, metavar="PATH", help=f"default: {SOCKET}"
    )
    metrics.add_options(parser, METRICS_PORT)
    log_format.add_option(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pinwarden.node.agent import daemon

    log_format.configure(options.log_format)
    rlimits.allow_all()
    settings = daemon.Settings(
        node=options.node or os.environ.get("NODE_NAME") or socket.gethostname().lower(),
        kubeconfig=options.kubeconfig,
        config=options.config,
        cgroup_root=options.cgroup_root,
        proc_root=options.proc_root,
        gates=options.gates,
        state_dir=options.state_dir,
        run_dir=options.run_dir,
        socket=options.socket,
        metrics_address=options.metrics_address,
        metrics_port=metrics.port(options),
        per_pod_metrics=options.per_pod_metrics,
    )
    try:
        if options.release:
            daemon.release(settings)
            return 0
        return 0 if daemon.run(settings) else 1
    except daemon.StartError as error:
        sys.stderr.write(f"pinwarden agent: {error}\n")
    except Exception:
        logging.getLogger(__name__).critical(
            "the agent failed; limits stay in force", exc_info=True
        )
    return 1
