"""`pinwarden ebpf --self-test`: try which pinned memory this kernel lets the eBPF ledger count."""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pinwarden.cli import host_paths
from pinwarden.common.table import render

if TYPE_CHECKING:
    from pinwarden.node.ebpf.selftest import SourceResult


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
        results = selftest.run(OBJECTS, options.cgroup_root)
    except (BpfError, OSError) as error:
        sys.stderr.write(f"pinwarden ebpf: {error}\n")
        return 1
    show = to_json if options.output == "json" else to_text
    sys.stdout.write(show(results))
    return 0


def to_json(results: Sequence["SourceResult"]) -> str:
    """Return the results as JSON, without unknown values."""
    sources = [
        {
            key: value
            for key, value in (
                ("source", result.source),
                ("counted", result.counted),
                ("uncounted", result.uncounted),
                ("survivesMunmap", result.survives_munmap),
                ("survivesExit", result.survives_exit),
                ("reason", result.reason),
            )
            if value is not None
        }
        for result in results
    ]
    return json.dumps({"kernelVersion": platform.release(), "sources": sources}, indent=2) + "\n"


def to_text(results: Sequence["SourceResult"]) -> str:
    """Return the results as a table."""
    head = ("SOURCE", "COUNTED", "UNCOUNTED", "SURVIVES MUNMAP", "SURVIVES EXIT", "MESSAGE")
    rows = [
        (
            result.source,
            *map(
                _word,
                (
                    result.counted,
                    result.uncounted,
                    result.survives_munmap,
                    result.survives_exit,
                ),
            ),
            result.reason,
        )
        for result in results
    ]
    return f"Kernel: {platform.release()}\n\n{render(head, rows)}"


def _word(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
