"""Builds the commands of a cluster from the pinned Go modules below ``go/``.

Each command is a piece of its own in the cache, so a test that needs three of them does not wait for ten. The
versions are those of go.mod and the content that of go.sum (``-mod=readonly``: a build never changes either).
Kubernetes takes its version from linker flags; without them it reports v0.0.0 and version checks misbehave. runc needs
C: it is linked statically, with the libseccomp of Debian, without which ordinary pods do not start.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import debian
from cluster.cache import cached
from cluster.errors import ClusterError
from cluster.paths import GO_MODULES

ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
STATIC_C = ("-tags", "netgo osusergo seccomp")


@dataclass(frozen=True)
class Command:
    """Where a command is built from: the folder below ``go/`` and the package; ``c`` when it needs a C compiler."""

    module: str
    package: str
    c: bool = False


_CONTAINERD = "github.com/containerd/containerd/v2"
_CNI = "github.com/containernetworking/plugins/plugins"
_HELM = "helm.sh/helm/v4"
COMMANDS = {
    "etcd": Command("kubernetes", "go.etcd.io/etcd/server/v3"),
    **{
        name: Command("kubernetes", f"k8s.io/kubernetes/cmd/{name}")
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet")
    },
    **{
        name: Command("runtime", f"{_CONTAINERD}/cmd/{name}")
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    },
    "host-local": Command("runtime", f"{_CNI}/ipam/host-local"),
    "loopback": Command("runtime", f"{_CNI}/main/loopback"),
    "ptp": Command("runtime", f"{_CNI}/main/ptp"),
    "helm": Command("helm", f"{_HELM}/cmd/helm"),
    "helm-docs": Command("helmdocs", "github.com/norwoodj/helm-docs/cmd/helm-docs"),
    "kubeconform": Command("helm", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "runc": Command("runc", "github.com/opencontainers/runc", c=True),
}


def _required(module: str, pattern: str) -> re.Match[str]:
    file = GO_MODULES / module / "go.mod"
    found = re.search(pattern, file.read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError(f"{file} has no line like {pattern}")
    return found


def _version_flags(command: Command) -> str:
    """Return the linker flags that tell a command its version."""
    if command.module == "kubernetes":
        major, minor, patch = _required(
            command.module, r"^\s*k8s\.io/kubernetes v(\d+)\.(\d+)\.(\S+)$"
        ).groups()
        version = "k8s.io/component-base/version"
        return (
            f" -X {version}.gitVersion=v{major}.{minor}.{patch}"
            f" -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
        )
    if command.package.startswith(_CONTAINERD):
        (number,) = _required(command.module, rf"^\s*{_CONTAINERD} v(\S+)$").groups()
        return f" -X {_CONTAINERD}/version.Version={number}"
    if command.package.startswith(_HELM):
        (number,) = _required(command.module, rf"^\s*{_HELM} v(\S+)$").groups()
        return f" -X {_HELM}/internal/version.version=v{number}"
    if command.module == "runc":
        (number,) = _required(
            command.module, rf"^\s*(?:require )?{re.escape(command.package)} v(\S+)$"
        ).groups()
        return f" -extldflags -static -X main.version={number}"
    return ""


def _arguments(command: Command) -> list[str]:
    """Return the arguments of ``go`` that build one command, without the output file."""
    flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", f"-s -w{_version_flags(command)}"]
    return ["build", *flags, *(STATIC_C if command.c else ()), command.package]


def _environment(command: Command) -> Mapping[str, str]:
    if not command.c:
        return ENVIRONMENT
    root = debian.programs("libseccomp", ["libseccomp-dev"])
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return ENVIRONMENT | {
        "CGO_ENABLED": "1",
        "PKG_CONFIG_PATH": str(libraries / "pkgconfig"),
        "PKG_CONFIG_SYSROOT_DIR": str(root),
        "CGO_CFLAGS": f"-O2 -I{root / 'usr/include'}",
        "CGO_LDFLAGS": f"-L{libraries}",
    }


def _build(name: str, folder: Path) -> None:
    command = COMMANDS[name]
    go = shutil.which("go")
    if go is None:
        wanted = _required(command.module, r"^go (\S+)$").group(1)
        raise ClusterError(
            f"go is not on PATH, {name} needs it: install Go {wanted} or newer (https://go.dev/dl)"
        )
    for tool in ("gcc", "pkg-config") if command.c else ():
        if shutil.which(tool) is None:
            raise ClusterError(f"{tool} is not on PATH, {name} needs it: apt-get install {tool}")
    verb, *rest = _arguments(command)
    done = subprocess.run(
        [go, verb, "-o", str(folder / name), *rest],
        cwd=GO_MODULES / command.module,
        env=os.environ | _environment(command),
        check=False,
    )
    if done.returncode:
        raise ClusterError(
            f"go could not build {name} (exit status {done.returncode}), see its messages above"
        )


def binary(name: str) -> Path:
    """Return the executable of one of :data:`COMMANDS`, building it first when the cache does not hold it.

    From an empty Go build cache kube-apiserver takes minutes and 2.5 GB of memory; later builds take seconds.

    Raises ClusterError when Go is missing or the build fails.
    """
    command = COMMANDS[name]
    module = GO_MODULES / command.module
    recipe = repr((_arguments(command), sorted(ENVIRONMENT.items())))
    inputs = [(module / "go.mod").read_bytes(), (module / "go.sum").read_bytes(), recipe.encode()]
    return cached(name, inputs, lambda folder: _build(name, folder)) / name
