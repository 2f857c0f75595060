"""QEMU: an emulated processor with Debian's own kernel.

The processor is always emulated, so that a guest behaves alike on every machine: where the machine
is itself a guest, KVM may be there and yet unable to boot a kernel (KVM_EXIT_INTERNAL_ERROR, after
which QEMU waits for ever). It is the plainest one: all that `max` adds (wide registers to save,
SMAP, five levels of page tables) is emulated too, and a guest with it takes a third longer for the
same work. QEMU 10 and the kernel are Debian's backported packages; QEMU 7.2 crashes this kernel
under emulation.
"""

from collections.abc import Mapping, Sequence
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

LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
FIRMWARE = ("usr/share/qemu", "usr/share/seabios")
KERNEL_PARAMETERS = (
    "console=ttyS0 quiet oops=panic panic=-1 mitigations=off no_timer_check tsc=reliable"
    " random.trust_cpu=on"
)
CONSOLE = ("-chardev", "file,id=console,path=/dev/stdout,append=on", "-serial", "chardev:console")
PROCESSORS = 2
NODE_FLAVOUR = "cloud-amd64"
NODE_BOOT_MODULES = ("virtio_pci", "virtio_blk")
NODE_MODULES = ("virtio_net", "overlay", "veth", "bridge", "br_netfilter")
GUEST_FLAVOUR = "amd64"
GUEST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


def _arguments(
    kernel: Path, init: Path, modules: Sequence[str], parameters: str, processors: int = PROCESSORS
) -> list[str]:
    """Return a command line that boots an unpacked kernel with an initial RAM disk; devices are the
    caller's to add.
    """
    root = debian.programs("qemu", ["qemu-system-x86"])
    image = next((kernel / "boot").glob("vmlinuz-*"))
    disk = initrd(kernel / "lib/modules", debian.busybox(), init, modules)
    return [
        *("env", "LD_LIBRARY_PATH=" + ":".join(str(root / part) for part in LIBRARIES)),
        str(root / "usr/bin/qemu-system-x86_64"),
        *(word for part in FIRMWARE for word in ("-L", str(root / part))),
        *("-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", str(processors), "-m", MEMORY),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *(
            "-kernel",
            str(image),
            "-initrd",
            str(disk),
            "-append",
            f"{KERNEL_PARAMETERS} {parameters}",
        ),
        *CONSOLE,
    ]


class Qemu:
    """See the module. ``release`` of Debian is where the kernel comes from, ``cgroups`` is what
    nodes mount.
    """

    def __init__(self, release: str = debian.BACKPORTS, cgroups: Cgroups = Cgroups.V2) -> None:
        self._release = release
        self._cgroups = cgroups

    def modules(self) -> Mapping[str, bytes]:
        """Return the modules of a node, see :class:`cluster.machine.Machine`."""
        return load_order(self._node_kernel() / "lib/modules", NODE_MODULES)

    def pieces(self) -> Sequence[str]:
        """Return the kernel's piece."""
        return [self._node_kernel().name]

    def node(self, devices: Devices) -> list[str]:
        """Return the command line of a node."""
        disks = [
            *((disk, "cache=writeback") for disk in devices.disks),
            (devices.identity, "readonly=on"),
        ]
        return [
            *_arguments(
                self._node_kernel(), NODE_INIT, NODE_BOOT_MODULES, cgroup_parameters(self._cgroups)
            ),
            *(
                word
                for disk, option in disks
                for word in ("-drive", f"file={disk},format=raw,if=virtio,{option}")
            ),
            *("-netdev", f"tap,id=net,ifname={devices.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,romfile=,mac={devices.mac}"),
            *("-device", "virtio-rng-pci"),
        ]

    def guest(self, job: Job) -> list[str]:
        """Return the command line of a guest."""
        kernel = debian.kernel(GUEST_FLAVOUR, self._release)
        return [
            *_arguments(kernel, GUEST_INIT, GUEST_MODULES, job_parameters(job), job.processors),
            *(
                "-virtfs",
                "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            ),
            *(
                word
                for name in ("output", "status")
                for word in ("-serial", f"file:{job.folder / name}")
            ),
        ]

    def _node_kernel(self) -> Path:
        return debian.kernel(NODE_FLAVOUR, self._release)
