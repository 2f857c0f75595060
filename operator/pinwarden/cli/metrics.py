"""Where the long-running subcommands serve metrics and probes."""

import argparse


def add_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Declare --metrics-address, --metrics-port with the port that is the default, and --per-pod-metrics."""
    parser.add_argument(
        "--metrics-address", default="", metavar="ADDRESS", help="default: all of the machine"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=port,
        metavar="PORT",
        help=f"of /metrics, /healthz and /readyz; 0 takes a free one, -1 serves none (default: {port})",
    )
    parser.add_argument(
        "--per-pod-metrics",
        action="store_true",
        help="serve series of each governed pod too, as many as there are pods (default: only sums over them)",
    )


def port(options: argparse.Namespace) -> int | None:
    """The port to serve at, None for none."""
    chosen: int = options.metrics_port
    return chosen if chosen >= 0 else None
