"""`pinwarden operator`: the controller of all limits and groups."""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pinwarden.cli import log_format, metrics

METRICS_PORT = 8080


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser("operator", help="run the operator")
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="kubeconfig for the API server (default: the pod's service account, else $KUBECONFIG)",
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="watch PinLimits, SharedMemoryGroups and pods of this namespace only; repeat for more "
        "namespaces (default: all)",
    )
    parser.add_argument(
        "--unknown-pods",
        type=_amount,
        metavar="QUANTITY",
        help="limit for pods that their node does not know yet (default: unlimited)",
    )
    metrics.add_options(parser, METRICS_PORT)
    log_format.add_option(parser)
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.namespace and options.unknown_pods is not None:
        parser.error(
            "argument --unknown-pods: not allowed with --namespace, "
            "because pods of other namespaces would stay unknown"
        )
    import asyncio

    from pinwarden.controller import daemon

    log_format.configure(options.log_format)
    settings = daemon.OperatorOptions(
        kubeconfig=options.kubeconfig,
        namespaces=options.namespace,
        unknown_pods=options.unknown_pods,
        metrics_address=options.metrics_address,
        metrics_port=metrics.port(options),
        per_pod_metrics=options.per_pod_metrics,
    )
    try:
        asyncio.run(daemon.run(settings))
    except daemon.StartError as error:
        sys.stderr.write(f"pinwarden operator: {error}\n")
        return 1
    except Exception:
        logging.getLogger(__name__).critical(
            "the operator failed; limits stay in force", exc_info=True
        )
        return 1
    return 0


def _amount(text: str) -> int:
    from pinwarden.api.quantity import MAX_BYTES, Quantity

    try:
        amount = Quantity(text).bytes
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if amount > MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is above 4Pi")
    return amount
