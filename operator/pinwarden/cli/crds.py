"""`pinwarden crds`: the CRDs, generated from the models."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "crds", help="print the CRDs, for kubectl apply --server-side -f -"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="write one file per CRD there instead"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pinwarden.api.crd import KINDS, render

    if options.output_dir is None:
        sys.stdout.write("---\n".join(render(kind) for kind in KINDS))
        return 0
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (options.output_dir / f"{kind.plural}.yaml").write_text(render(kind))
    return 0
