"""Write the chart's README with helm-docs, or the plain manifests for users without Helm.

Usage: `chart.py readme`, or `chart.py manifests FOLDER`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from cluster import chart
from cluster.build import binary

HEAD = """# The chart with its default values for Kubernetes 1.36 or newer, for those without Helm.
# `make manifests` writes this file.
# Apply crds/ first, and then this file with `kubectl apply --server-side -f`.
# An older server does not know MutatingAdmissionPolicy: leave out these objects there.
"""
NAME = "pinwarden.yaml"


def readme(folder: Path = chart.CHART) -> str:
    """Return the README of the chart in `folder`, and change nothing there."""
    done = subprocess.run(
        [binary("helm-docs"), "--dry-run", "--log-level=error", f"--chart-search-root={folder}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip() + "\n"


def manifests() -> dict[str, str]:
    """Return the text of each plain manifest by the name of its file."""
    return {NAME: HEAD + chart.manifest()}


def main() -> int:
    """Write the README or the manifests."""
    match sys.argv[1:]:
        case ["readme"]:
            (chart.CHART / "README.md").write_text(readme())
        case ["manifests", folder]:
            shutil.rmtree(folder, ignore_errors=True)
            Path(folder).mkdir(parents=True)
            for name, text in manifests().items():
                (Path(folder) / name).write_text(text)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
