"""What the test cluster's tools work out before anything is started."""

import lzma
import shlex
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.guest import _job
from cluster.initrd import load_order


def module(folder: Path, file: str, *, depends: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = f"ELF\0license=GPL\0depends={depends}\0intree=Y\0".encode()
    (folder / file).write_bytes(lzma.compress(content) if file.endswith(".xz") else content)


def test_modules_are_loaded_after_what_they_depend_on(tmp_path: Path) -> None:
    module(tmp_path / "fs", "9p.ko.xz", depends="netfs,9pnet")
    module(tmp_path / "fs", "netfs.ko", depends="")
    module(tmp_path / "net", "9pnet.ko.xz", depends="netfs")
    module(tmp_path / "net", "snd-other.ko.xz", depends="")
    order = load_order(tmp_path, ["9p", "9pnet", "snd_other"])
    assert list(order) == ["netfs", "9pnet", "9p", "snd_other"]
    assert all(content.startswith(b"ELF") for content in order.values())


def test_a_module_that_is_built_in_is_not_loaded(tmp_path: Path) -> None:
    module(tmp_path / "net", "9pnet_virtio.ko", depends="virtio")
    (tmp_path / "modules.builtin").write_text(
        "kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-pci.ko\n"
    )
    assert list(load_order(tmp_path, ["virtio_pci", "9pnet_virtio"])) == ["9pnet_virtio"]


def test_a_module_that_the_kernel_lacks_is_named(tmp_path: Path) -> None:
    module(tmp_path, "9p.ko", depends="gone")
    with pytest.raises(ClusterError, match="no module gone"):
        load_order(tmp_path, ["9p"])


def test_a_job_keeps_every_word_and_has_no_other_environment(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo 'a  b' \"$HOME\"", ""]
    words = shlex.split(_job(argv, {"PATH": "/bin:/x y"}, tmp_path / "it's"))
    assert words == [
        "cd",
        str(tmp_path / "it's"),
        "&&",
        "exec",
        "env",
        "-i",
        "PATH=/bin:/x y",
        *argv,
    ]
