"""`pinwarden crds`: the subcommands and their arguments.

Exit codes are those that kubectl users expect: 0 done, 1 failed, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pinwarden import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    parser = argparse.ArgumentParser(prog="pinwarden", description="Limits pinned memory per Kubernetes pod.")
    parser.add_argument("--version", action="version", version=f"pinwarden {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    crds = commands.add_parser("crds", help="print the CRDs, for kubectl apply --server-side -f -")
    crds.add_argument("--output-dir", type=Path, metavar="DIR", help="write one file per CRD there instead")
    options = parser.parse_args(arguments)
    return _crds(options.output_dir)


def _crds(output_dir: Path | None) -> int:
    from pinwarden.api.crd import KINDS, render

    if output_dir is None:
        sys.stdout.write("---\n".join(render(kind) for kind in KINDS))
        return 0
    output_dir.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (output_dir / f"{kind.plural}.yaml").write_text(render(kind))
    return 0
