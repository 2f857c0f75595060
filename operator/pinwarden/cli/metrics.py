"""Options for the metrics and probes of the long-running subcommands."""

import argparse


def add_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Declare --metrics-address, --metrics-port with this default, and --per-pod-metrics."""
    parser.add_argument(
        "--metrics-address", default="", metavar="ADDRESS", help="default: all addresses"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=port,
        metavar="PORT",
        help="port of /metrics, /healthz and /readyz; 0 takes a free port, -1 serves nothing "
        f"(default: {port})",
    )
    parser.add_argument(
        "--per-pod-metrics",
        action="store_true",
        help="also serve series of each governed pod (default: only their sums)",
    )


def port(options: argparse.Namespace) -> int | None:
    """Return the port, None if nothing is served."""
    chosen: int = options.metrics_port
    return chosen if chosen >= 0 else None
