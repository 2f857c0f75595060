"""Builds the Kubernetes commands from the pinned Go module ``go/kubernetes``.

Each command is a piece of its own in the cache, so a test that needs three of them does not wait for five. The
versions are those of go.mod and the content that of go.sum (``-mod=readonly``: a build never changes either).
Kubernetes takes its version from linker flags; without them it reports v0.0.0 and version checks misbehave.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from cluster.cache import cached
from cluster.errors import ClusterError
from cluster.paths import GO_MODULES

MODULE = GO_MODULES / "kubernetes"
PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}


def _required(pattern: str) -> re.Match[str]:
    found = re.search(pattern, (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError(f"{MODULE / 'go.mod'} has no line like {pattern}")
    return found


def _command(name: str) -> list[str]:
    """Return the arguments of ``go`` that build one command, without the output file."""
    major, minor, patch = _required(r"^\s*k8s\.io/kubernetes v(\d+)\.(\d+)\.(\S+)$").groups()
    version = "k8s.io/component-base/version"
    ldflags = (
        f"-s -w -X {version}.gitVersion=v{major}.{minor}.{patch}"
        f" -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    )
    flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", ldflags]
    return ["build", *flags, PACKAGES[name]]


def _build(name: str, folder: Path) -> None:
    go = shutil.which("go")
    if go is None:
        wanted = _required(r"^go (\S+)$").group(1)
        raise ClusterError(
            f"go is not on PATH, {name} needs it: install Go {wanted} or newer (https://go.dev/dl)"
        )
    verb, *rest = _command(name)
    done = subprocess.run(
        [go, verb, "-o", str(folder / name), *rest], cwd=MODULE, env=os.environ | ENVIRONMENT, check=False
    )
    if done.returncode:
        raise ClusterError(
            f"go could not build {name} (exit status {done.returncode}), see its messages above"
        )


def binary(name: str) -> Path:
    """Return the executable of one of :data:`PACKAGES`, building it first when the cache does not hold it.

    From an empty Go build cache kube-apiserver takes minutes and 2.5 GB of memory; later builds take seconds.

    Raises ClusterError when Go is missing or the build fails.
    """
    recipe = repr((_command(name), sorted(ENVIRONMENT.items())))
    inputs = [(MODULE / "go.mod").read_bytes(), (MODULE / "go.sum").read_bytes(), recipe.encode()]
    return cached(name, inputs, lambda folder: _build(name, folder)) / name
