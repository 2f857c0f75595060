"""`pinwarden ebpf --self-test`: try which pinned memory this kernel lets the eBPF ledger count."""

import argparse
import json
import platform
import sys
from typing import TYPE_CHECKING, Any

from pinwarden.cli import host_paths
from pinwarden.common.table import render

if TYPE_CHECKING:
    from pinwarden.node.ebpf.selftest import OperationResult, SelfTest


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "ebpf", help="try which pinned memory can be counted in this node's kernel, by eBPF"
    )
    parser.add_argument(
        "--self-test",
        action="store_true",
        required=True,
        help="pin memory in each way in a scratch cgroup, and show whether the kernel counts it; "
        "enforcement does not use these counts yet",
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="default: table"
    )
    host_paths.add_options(parser, "--cgroup-root")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pinwarden.node.ebpf import selftest
    from pinwarden.node.ebpf.loader import OBJECTS, BpfError

    try:
        done = selftest.run(OBJECTS, options.cgroup_root)
    except (BpfError, OSError) as error:
        sys.stderr.write(f"pinwarden ebpf: {error}\n")
        return 1
    show = to_json if options.output == "json" else to_text
    sys.stdout.write(show(done))
    return 0


def to_json(done: "SelfTest") -> str:
    """Return the results as JSON, without unknown values."""
    operations = [
        {
            key: value
            for key, value in (
                ("operation", result.operation),
                ("counted", result.counted),
                ("uncounted", result.uncounted),
                ("staysAfterMunmap", result.survives_munmap),
                ("staysAfterExit", result.survives_exit),
                ("reason", result.reason),
            )
            if value is not None
        }
        for result in done.results
    ]
    content = {
        "kernelVersion": platform.release(),
        "operations": operations,
        "leftOut": dict(done.left_out),
    }
    return json.dumps(content, indent=2) + "\n"


def to_text(done: "SelfTest") -> str:
    """Return the results as a table, and below it the programs that are not attached."""
    head = ("OPERATION", "COUNTED", "UNCOUNTED", "STAYS AFTER MUNMAP", "STAYS AFTER EXIT", "REASON")
    rows = [cells(result) for result in done.results]
    text = f"Kernel: {platform.release()}\n\n{render(head, rows)}"
    for name, reason in sorted(done.left_out.items()):
        text += f"\nProgram {name} is not attached: {reason}"
    return text.rstrip("\n") + "\n"


def cells(result: "OperationResult") -> list[str]:
    """Return a row: the operation, its effects, and the reason, which may be empty."""
    effects = (
        result.counted,
        result.uncounted,
        result.survives_munmap,
        result.survives_exit,
    )
    return [result.operation, *map(_word, effects), result.reason]


def _word(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"
