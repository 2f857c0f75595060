"""Dma-bufs by their exporter, among the open files of member pods.

A mapping without an open file does not show the exporter, so such a dma-buf is not found.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from pinwarden.node.accountant.finder.processes import before, by_pod, descriptors, limited_time
from pinwarden.node.accountant.finder.result import GroupObjects, Pids
from pinwarden.node.linux.procfs import GONE
from pinwarden.node.shm.objects import ObjectId

_DMABUF: Final = "/dmabuf:"
_EXPORTER: Final = re.compile(r"^exp_name:\s*(.*)$", re.MULTILINE)
_SIZE: Final = re.compile(r"^size:\s*(\d+)$", re.MULTILINE)


def find(objects: GroupObjects, proc_root: Path, exporter: str, pids: Pids) -> None:
    """Add the dma-bufs of an exporter. Raises OSError."""
    with limited_time(objects) as deadline:
        for pid in by_pod(pids):
            for number, path, target in before(deadline, descriptors(proc_root, pid)):
                if target.startswith(_DMABUF):
                    with suppress(*GONE):
                        _add(objects, exporter, path, proc_root / str(pid) / "fdinfo" / number)


def _add(objects: GroupObjects, exporter: str, path: str, fdinfo: Path) -> None:
    about = os.stat(path)
    text = fdinfo.read_text(errors="surrogateescape")  # a dma-buf may have any name
    name, size = _EXPORTER.search(text), _SIZE.search(text)
    if name and size and name[1] == exporter:
        objects.add(ObjectId(about.st_dev, about.st_ino), int(size[1]))
        objects.dmabuf_devices.add(about.st_dev)
