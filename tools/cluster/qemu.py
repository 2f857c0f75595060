"""QEMU and the kernels of guests, and the arguments that every guest has in common.

The processor is always emulated, so that a guest behaves alike on every machine: where the machine is itself a guest,
KVM may be there and yet unable to boot a kernel (KVM_EXIT_INTERNAL_ERROR, after which QEMU waits for ever). It is the plainest one that
there is: all that `max` adds (wide registers to save, SMAP, five levels of page tables) is emulated too, and a guest with it takes a
third longer for the same work. QEMU 10 and the kernel are Debian's backported packages; QEMU 7.2 crashes this kernel under emulation.
"""

from collections.abc import Sequence
from pathlib import Path

from cluster import debian
from cluster.initrd import initrd

LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
FIRMWARE = ("usr/share/qemu", "usr/share/seabios")
KERNEL_PARAMETERS = (
    "console=ttyS0 quiet oops=panic panic=-1 mitigations=off no_timer_check tsc=reliable random.trust_cpu=on"
)
PROCESSORS = 2
MEMORY = "1536M"


def _root() -> Path:
    return debian.programs("qemu", ["qemu-system-x86", "busybox-static"])


def busybox() -> Path:
    """Return a static busybox."""
    return _root() / "bin/busybox"


def arguments(
    flavour: str, init: Path, modules: Sequence[str], parameters: str, processors: int = PROCESSORS
) -> list[str]:
    """Return a command line that boots Debian's kernel of a flavour with an initial RAM disk; devices are the caller's to add."""
    root = _root()
    kernel = debian.kernel(flavour)
    image = next((kernel / "boot").glob("vmlinuz-*"))
    return [
        *("env", "LD_LIBRARY_PATH=" + ":".join(str(root / part) for part in LIBRARIES)),
        str(root / "usr/bin/qemu-system-x86_64"),
        *(word for part in FIRMWARE for word in ("-L", str(root / part))),
        *("-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", str(processors), "-m", MEMORY),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", str(image), "-initrd", str(initrd(kernel, busybox(), init, modules))),
        *("-append", f"{KERNEL_PARAMETERS} {parameters}"),
    ]
