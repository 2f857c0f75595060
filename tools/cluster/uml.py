"""User-mode Linux: a kernel as a process, without emulation and without a right that the machine
itself lacks.

System calls of the guest's processes reach the guest's kernel through seccomp(2), which costs some
five microseconds each; everything between them runs at the processor's own speed. The kernel is
Debian's package of a newer suite than this machine's: it needs that suite's C library, which is
laid over the machine's in a mount namespace of its own. The guest's memory is a tmpfs of that
namespace. All processes live in a process namespace of their own, so nothing outlives the one that
is ended.

A guest has one processor, and its kernel and its processes take turns, at each system call. So a
guest keeps to one processor of the machine. A turn that wakes another processor takes several times
longer, in a virtual machine above all.
"""

import itertools
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cluster import debian
from cluster.initrd import initrd, load_order
from cluster.machine import (
    GUEST_INIT,
    MEMORY,
    NODE_INIT,
    Cgroups,
    Devices,
    Job,
    cgroup_parameters,
    job_parameters,
)

SUITE = "forky"
PACKAGES = ("user-mode-linux", "libc6")
MODULES = ("overlay", "veth", "bridge", "br_netfilter")
GUEST_MODULES = ("overlay",)
GUEST_MEMORY = "4096M"
NODE_MEMORY = MEMORY
ENTER = """
libraries=/usr/lib/x86_64-linux-gnu
mount -t overlay overlay -o "lowerdir=$0$libraries:$libraries" $libraries
mount -t tmpfs -o size=100% memory /dev/shm
exec "$@"
"""
_KERNEL_NAME = "linux.uml"
_turns = itertools.count(random.randrange(1024))  # not the same in the processes of a test run
WITH_OUTPUT = 'exec "$@" 3>>"$0/output" 4>>"$0/status"'


def _kernel() -> Path:
    return debian.alone("uml", PACKAGES, SUITE)


def _processor() -> int:
    """Return the machine's processor for the next guest: one with few guests."""
    guests = Counter[int]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            if (process / "comm").read_text().strip() == _KERNEL_NAME:
                guests.update(os.sched_getaffinity(int(process.name)))
    processors, turn = sorted(os.sched_getaffinity(0)), next(_turns)
    order = {each: (place + turn) % len(processors) for place, each in enumerate(processors)}
    return min(processors, key=lambda each: (guests[each], order[each]))


def _arguments(
    umid: str, directory: Path, memory: str, init: Path, modules: Sequence[str]
) -> list[str]:
    """Return a command line that boots the kernel with an initial RAM disk; devices are the
    caller's to add.
    """
    kernel = _kernel()
    tree = kernel / "usr/lib/uml/modules"
    return [
        *("taskset", "--cpu-list", str(_processor())),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", ENTER, str(kernel)),
        *(str(kernel / "usr/bin" / _KERNEL_NAME), "seccomp=on", f"mem={memory}"),
        *(
            f"umid={umid}",
            f"uml_dir={directory}/",
            f"initrd={initrd(tree, debian.busybox(), init, modules)}",
        ),
        *("con=null", "con0=null,fd:1", "ssl=null", "panic=-1", "quiet"),
    ]


class Uml:
    """See the module."""

    def modules(self) -> Mapping[str, bytes]:
        """Return the modules of a node, see :class:`cluster.machine.Machine`."""
        return load_order(_kernel() / "usr/lib/uml/modules", MODULES)

    def pieces(self) -> Sequence[str]:
        """Return the kernel's piece."""
        return [_kernel().name]

    def node(self, devices: Devices) -> list[str]:
        """Return the command line of a node."""
        disks = zip("ab", devices.disks, strict=True)
        network = f"vec0:transport=tap,ifname={devices.tap},depth=128,gro=1,mac={devices.mac}"
        return [
            *_arguments(devices.name, devices.directory, NODE_MEMORY, NODE_INIT, ()),
            *(f"ubd{letter}={disk}" for letter, disk in disks),
            *(f"ubdcr={devices.identity}", network, *cgroup_parameters(Cgroups.V2).split()),
        ]

    def guest(self, job: Job) -> list[str]:
        """Return the command line of a guest; it has one processor."""
        command = _arguments("guest", job.folder, GUEST_MEMORY, GUEST_INIT, GUEST_MODULES)
        channels = ["con1=null,fd:3", "con2=null,fd:4"]
        return [
            "sh",
            "-c",
            WITH_OUTPUT,
            str(job.folder),
            *command,
            *channels,
            *job_parameters(job).split(),
        ]
