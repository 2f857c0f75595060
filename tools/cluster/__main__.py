"""The command line: `python -m cluster build`, `bpf`, `controlplane`, `guest`, `up` and `down`."""

import argparse
import signal
import sys

from cluster import bpf, guest, standing
from cluster.build import COMMANDS, binary
from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError
from cluster.machine import Cgroups, Kind
from cluster.pieces import build_cluster, build_everything
from cluster.qemu import PROCESSORS

INTERRUPTED = 130
"""The exit status of what SIGINT ended, as shells have it. The control plane alone has no other
end.
"""


def _build() -> None:
    build_everything()
    for name in COMMANDS:
        print(binary(name))


def _control_plane(*, controller_manager: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kubectl = binary("kubectl")
    with ControlPlane(controller_manager=controller_manager) as running:
        print(f"API server: {running.url}\nlogs:       {running.directory}/*.log\nuse it with:")
        print(f"  export KUBECONFIG={running.kubeconfig}\n  {kubectl} get namespaces")
        print("Ctrl-C ends it and removes its data.", flush=True)
        signal.pause()


def main() -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "build",
        help="build into the cache what clusters and tests need, and print where the commands are",
    )
    commands.add_parser(
        "bpf", help="compile the programs of bpf/ into the source tree, where the package has them"
    )
    start = commands.add_parser("controlplane", help="run etcd and kube-apiserver until Ctrl-C")
    start.add_argument(
        "--controller-manager", action="store_true", help="run kube-controller-manager too"
    )
    inside = commands.add_parser(
        "guest", help="run a command in a guest with a real kernel, as root"
    )
    inside.add_argument(
        *("--cgroups", "-c"),
        type=Cgroups,
        choices=list(Cgroups),
        default=Cgroups.V2,
        help="default: v2",
    )
    inside.add_argument(
        "--kind", type=Kind, choices=list(Kind), default=Kind.QEMU, help="default: qemu"
    )
    inside.add_argument(
        "--timeout", type=float, default=600, metavar="SECONDS", help="default: 600"
    )
    inside.add_argument(
        "--processors",
        type=int,
        default=PROCESSORS,
        metavar="N",
        help=f"default: {PROCESSORS}",
    )
    inside.add_argument("argv", nargs="+", metavar="COMMAND", help="and its arguments, after --")
    standing_up = commands.add_parser(
        "up", help="start a whole cluster with pinwarden in it, and leave it running"
    )
    standing_up.add_argument(
        "nodes",
        nargs="*",
        type=Kind,
        metavar="KIND",
        help=f"{' or '.join(Kind)}, one for each node; default: {Kind.UML}",
    )
    commands.add_parser("down", help="end it, leaving nothing behind")
    keeper = commands.add_parser("stand", help="what `up` starts")
    keeper.add_argument("nodes", nargs="+", type=Kind)
    arguments = parser.parse_args()
    try:
        if arguments.command == "build":
            _build()
        elif arguments.command == "bpf":
            for path in bpf.install():
                print(path.relative_to(bpf.ROOT))
        elif arguments.command == "up":
            nodes = arguments.nodes or [Kind.UML]
            build_cluster(nodes)
            standing.up(nodes)
        elif arguments.command == "down":
            standing.down()
        elif arguments.command == "stand":
            standing.stand(arguments.nodes)
        elif arguments.command == "guest":
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            return guest.run(
                arguments.argv,
                kind=arguments.kind,
                cgroups=arguments.cgroups,
                timeout=arguments.timeout,
                processors=arguments.processors,
            )
        else:
            _control_plane(controller_manager=arguments.controller_manager)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
        return 0 if arguments.command == "controlplane" else INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
