"""What a guest runs on: kinds of machine behind one interface.

*uml* is a kernel as an ordinary process of this machine, at the processor's own speed. *qemu* is an
emulated processor with Debian's own kernel, for what only that can show; *qemu-v1* is the same with
the kernel of Debian 12 and cgroup v1. A kind only makes command lines: :class:`cluster.node.Node`
and :mod:`cluster.guest` start them. Each command line writes the guest's console to its standard
output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

MEMORY = "1536M"
NODE_INIT = Path(__file__).resolve().parent / "node/init"
GUEST_INIT = Path(__file__).resolve().parent / "guest/init"


class Kind(StrEnum):
    """The kinds, by the names that the command line takes."""

    UML = "uml"
    QEMU = "qemu"
    QEMU_V1 = "qemu-v1"


class Cgroups(StrEnum):
    """How a guest mounts its cgroup hierarchies."""

    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"


@dataclass(frozen=True)
class Devices:
    """What a node's machine is made of.

    ``disks`` hold the system and the images, ``identity`` is read-only; all are raw. ``tap`` is the
    network device that the machine is plugged into, ``mac`` its own address. ``directory`` is for
    what the machine itself has to keep.
    """

    name: str
    disks: Sequence[Path]
    identity: Path
    tap: str
    mac: str
    directory: Path


@dataclass(frozen=True)
class Job:
    """One command in a guest that sees this machine's files.

    ``folder`` holds the script ``job`` and the empty files ``output`` and ``status``, which the
    guest appends to.
    """

    folder: Path
    cgroups: Cgroups
    processors: int


class Machine(Protocol):
    """A kind of machine."""

    def modules(self) -> Mapping[str, bytes]:
        """Return what a node's kernel has to load, uncompressed, in the order in which it must be
        loaded.
        """

    def pieces(self) -> Sequence[str]:
        """Return the names of the cached pieces that :meth:`modules` come from."""

    def node(self, devices: Devices) -> list[str]:
        """Return the command line that boots a node from its disks."""

    def guest(self, job: Job) -> list[str]:
        """Return the command line that boots a guest, which runs one job and ends."""


def cgroup_parameters(cgroups: Cgroups) -> str:
    """Return the kernel parameters by which the first process of a guest or a node knows what to
    mount.
    """
    only_v2 = " cgroup_no_v1=all" if cgroups is Cgroups.V2 else ""
    return f"pinwarden.cgroup={cgroups}{only_v2}"


def job_parameters(job: Job) -> str:
    """Return the kernel parameters by which ``guest/init`` knows its job."""
    return f"pinwarden.job={job.folder / 'job'} {cgroup_parameters(job.cgroups)}"
