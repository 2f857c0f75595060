"""`pinwarden uninstall`: release every node; the chart runs it before the chart is deleted."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from pinwarden import SYSTEM_NAMESPACE
from pinwarden.cli import log_format

TIMEOUT_SECONDS = 120.0
_NRI_REQUIRED = (
    "nodes may require the NRI plugin, and would start no container without it: take "
    "required_plugins out of containerd's configuration on each node, then set the chart's "
    "gate.nri.tolerationAnnotation to empty, and uninstall again"
)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "uninstall", help="release every node, clear finalizers, delete NodePinConfigs"
    )
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="kubeconfig for the API server (default: the pod's service account, else $KUBECONFIG)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"time limit for all nodes together (default: {TIMEOUT_SECONDS:.0f})",
    )
    parser.add_argument(
        "--gated-pods",
        choices=["Refuse", "Break"],
        default="Refuse",
        help="while gated pods run: stop, or break them (default: Refuse)",
    )
    parser.add_argument(
        "--nri-required",
        action="store_true",
        help="change nothing and fail, because nodes start no container without the NRI plugin",
    )
    parser.add_argument(
        "--namespace",
        default=os.environ.get("POD_NAMESPACE") or SYSTEM_NAMESPACE,
        metavar="NAME",
        help=f"namespace of the operator (default: $POD_NAMESPACE, else {SYSTEM_NAMESPACE})",
    )
    log_format.add_option(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import asyncio

    from pinwarden.controller.client import ApiError, ConnectionSetupError
    from pinwarden.controller.uninstall.lease import UninstallError
    from pinwarden.controller.uninstall.uninstall import GatedPods, UninstallOptions, run

    log_format.configure(options.log_format)
    if options.nri_required:
        sys.stderr.write(f"pinwarden uninstall: {_NRI_REQUIRED}\n")
        return 1
    settings = UninstallOptions(
        namespace=options.namespace,
        timeout=options.timeout,
        gated_pods=GatedPods(options.gated_pods),
    )
    try:
        asyncio.run(run(options.kubeconfig, settings, lambda line: print(line, flush=True)))
    except (UninstallError, ConnectionSetupError) as error:
        sys.stderr.write(f"pinwarden uninstall: {error}\n")
        return 1
    except ApiError as error:
        logging.getLogger(__name__).debug("a request failed", exc_info=True)
        sys.stderr.write(
            f"pinwarden uninstall: {error}; the uninstall is incomplete, and the operator "
            "reverts the changes: run it again\n"
        )
        return 1
    return 0
