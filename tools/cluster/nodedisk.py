"""The disks that nodes boot from: the system, which is the same for all, and containerd's root
folder with the images in it.

Both are made on this machine and cached by the hash of their parts; each node gets its own copies.
Images are imported by a containerd that runs for a moment here, because importing inside a
guest takes seconds each.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import debian
from cluster.build import binary
from cluster.cache import cached
from cluster.commands import run
from cluster.errors import ClusterError
from cluster.image import image, pause_image
from cluster.machine import Kind
from cluster.machines import MACHINES
from cluster.process import Child
from cluster.scratch import scratch

FILES = Path(__file__).resolve().parent / "node"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "kubelet")
PLUGINS = ("host-local", "loopback", "ptp")
FOLDERS = (
    *("bin", "sbin", "usr/bin", "etc/cni/net.d", "etc/containerd", "etc/kubernetes", "opt/cni/bin"),
    *(
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
        "var/log",
        "var/tmp",
        "var/lib/kubelet",
        "var/lib/containerd",
    ),
    *("lib/modules",),
)
SETTINGS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/resolv.conf": "nameserver 10.0.0.10\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/os-release": 'NAME="pinwarden test node"\nID=pinwarden\n'
    'PRETTY_NAME="pinwarden test node"\n',
}
IMPORT_CONFIGURATION = """
version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[grpc]
  address = "{folder}/containerd.sock"
[ttrpc]
  address = "{folder}/containerd.ttrpc"
"""
START_SECONDS = 20.0


def _format(tree: Path, disk: Path, size: str) -> None:
    """Write an ext4 file system that holds a folder; the file is sparse."""
    command = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=1,root_owner=0:0",
        "-d",
        str(tree),
    ]
    run([*command, disk, size])


def _fill_system(tree: Path, modules: Mapping[str, bytes]) -> None:
    for folder in FOLDERS:
        (tree / folder).mkdir(parents=True, exist_ok=True)
    busybox = debian.busybox()
    shutil.copy(busybox, tree / "bin/busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    for program in PROGRAMS:
        shutil.copy(binary(program), tree / "usr/bin" / program)
    for plugin in PLUGINS:
        shutil.copy(binary(plugin), tree / "opt/cni/bin" / plugin)
    for number, (name, content) in enumerate(modules.items()):
        (tree / f"lib/modules/{number:02}-{name}.ko").write_bytes(content)
    for script in ("node", "serve-command"):
        shutil.copy(FILES / script, tree / "sbin" / script)
        (tree / "sbin" / script).chmod(0o755)
    shutil.copy(FILES / "containerd.toml", tree / "etc/containerd/config.toml")
    shutil.copy(FILES / "kubelet.yaml", tree / "etc/kubernetes/kubelet.yaml")
    for name, text in SETTINGS.items():
        (tree / name).write_text(text)


def system_disk(kind: Kind) -> Path:
    """Return the disk with everything but images: busybox, containerd, runc, kubelet, CNI plugins
    and kernel modules.
    """
    machine = MACHINES[kind]

    def build(folder: Path) -> None:
        _fill_system(folder / "tree", machine.modules())
        _format(folder / "tree", folder / "disk", "2G")
        shutil.rmtree(folder / "tree")

    built = [binary(name).parent.name for name in (*PROGRAMS, *PLUGINS)]
    pieces = [*built, *machine.pieces(), debian.busybox().parents[1].name, FOLDERS, SETTINGS]
    scripts = [path.read_bytes() for path in sorted(FILES.iterdir())]
    return cached(f"node-system-{kind}", [repr(pieces).encode(), *scripts], build) / "disk"


def _import(archives: Sequence[Path], folder: Path) -> None:
    """Fill ``folder/root`` with what containerd keeps of images."""
    (folder / "config.toml").write_text(IMPORT_CONFIGURATION.format(folder=folder))
    server = Child(
        "containerd",
        [str(binary("containerd")), "--config", str(folder / "config.toml")],
        folder / "containerd.log",
    )
    server.start()
    try:
        socket = folder / "containerd.sock"
        deadline = time.monotonic() + START_SECONDS
        while not socket.exists():
            if not server.running or time.monotonic() > deadline:
                raise ClusterError(
                    f"containerd did not start; the end of its log:\n{server.tail()}"
                )
            time.sleep(0.05)
        for archive in archives:
            run(
                [
                    *(binary("ctr"), "--address", socket, "--namespace", "k8s.io"),
                    *("images", "import", "--snapshotter", "overlayfs", archive),
                ]
            )
    finally:
        server.stop()


def image_disk(more: Sequence[Path] = ()) -> Path:
    """Return the disk with containerd's root folder, which holds the pause image, the project's as
    the source tree is now, and ``more``.
    """
    archives = [pause_image(), image(), *more]

    def build(folder: Path) -> None:
        with scratch("import") as work:  # the path of a socket in it has at most 107 bytes
            _import(archives, work)
            _format(work / "root", folder / "disk", "4G")

    pieces = [*(archive.parent.name for archive in archives), binary("containerd").parent.name]
    return cached("node-images", [repr((pieces, IMPORT_CONFIGURATION)).encode()], build) / "disk"
