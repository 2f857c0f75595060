"""What is found among the files and descriptors of processes whose names are as a pod likes them, over folders that look like /proc."""

import os
from pathlib import Path
from typing import Any

import pytest

from pinwarden.agent.shared.finding import Finder
from pinwarden.agent.shared.host import mounts
from pinwarden.agent.shared.objects import ObjectId
from pinwarden.api.nodepinconfig import NodeGroup

PID = 7


def group(backing: dict[str, Any]) -> NodeGroup:
    return NodeGroup.model_validate(
        {
            "name": "ns/g",
            "uid": "g",
            "backing": backing,
            "management": "Adopt",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [{"pods": ["p"]}],
        }
    )


@pytest.mark.rule("M3")
def test_a_dma_buf_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DMA_BUF_SET_NAME takes any bytes, and fdinfo shows them."""
    buffer, folder = tmp_path / "buffer", tmp_path / str(PID) / "fdinfo"
    buffer.touch()
    folder.mkdir(parents=True)
    (folder / "3").write_bytes(b"size:\t8192\ncount:\t1\nexp_name:\tudmabuf\nname:\t\xff\n")
    monkeypatch.setattr(Finder, "_descriptors", lambda *_: [("3", str(buffer), "/dmabuf:\udcff")])
    found = Finder(tmp_path).find(group({"dmabuf": {"exporter": "udmabuf"}}), {"p": [PID]})
    about = buffer.stat()
    assert found.objects == {ObjectId(about.st_dev, about.st_ino): 8192}


def test_a_mount_may_have_any_name(tmp_path: Path) -> None:
    """A name can have a character that ends a line in Unicode, and bytes that are no text."""
    point = "/a\r\x0b\x1c\x85\u2028b".encode() + b"\xff"
    (tmp_path / "mountinfo").write_bytes(b"30 1 0:25 / %b rw - tmpfs tmpfs rw\n" % point)
    assert [(each.device, os.fsencode(each.point), each.type) for each in mounts(tmp_path)] == [
        (os.makedev(0, 25), point, "tmpfs")
    ]


@pytest.mark.rule("M3")
def test_a_mapping_that_goes_or_lies_low_hides_no_memfd(tmp_path: Path) -> None:
    process = tmp_path / str(PID)
    (process / "map_files").mkdir(parents=True)
    mappings = {
        "05000000-05001000": 8,
        "06000000-06001000": 8,
        "00010000-00011000": 9,
        "7f0000000000-7f0000001000": 10,
    }
    lines = [
        f"{where} rw-s 00000000 00:01 {inode}    /memfd:pw (deleted)\n" for where, inode in mappings.items()
    ]
    (process / "maps").write_text("".join(lines))
    for name in ("6000000-6001000", "10000-11000", "7f0000000000-7f0000001000"):
        (process / "map_files" / name).touch()
    found = Finder(tmp_path).find(group({"memfd": {"name": "pw"}}), {"p": [PID]})
    assert found.count == 3


@pytest.mark.rule("M3")
def test_a_first_thread_that_ended_hides_no_memfd(tmp_path: Path) -> None:
    """Its process has no mappings to show then; another thread has, also in a folder of its own."""
    thread = tmp_path / str(PID) / "task" / str(PID + 1)
    files = tmp_path / str(PID + 1) / "map_files"
    thread.mkdir(parents=True)
    files.mkdir(parents=True)
    (thread / "maps").write_text("7f0000000000-7f0000001000 rw-s 00000000 00:01 8    /memfd:pw (deleted)\n")
    (files / "7f0000000000-7f0000001000").touch()
    found = Finder(tmp_path).find(group({"memfd": {"name": "pw"}}), {"p": [PID]})
    assert found.count == 1
