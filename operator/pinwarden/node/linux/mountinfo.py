"""The mounts of a process, from /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pinwarden.node.linux.procfs import GONE

_MOUNT: Final = re.compile(
    r"(?P<id>\d+) \d+ (?P<major>\d+):(?P<minor>\d+) (?P<root>[^ ]+) (?P<point>[^ ]+) "
    r"\S+(?: \S+:\S+| unbindable)* - (?P<type>\S+) "
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: `root` is the mounted folder of the file system, `point` the place."""

    id: int
    device: int
    root: str
    point: str
    type: str


def read_mountinfo(process: Path) -> list[Mount]:
    """Return the mounts of a process in the kernel's order; none if it is gone.

    Raises OSError.
    """
    try:
        text = os.fsdecode((process / "mountinfo").read_bytes())
    except GONE:
        return []
    except OSError as error:
        if error.errno == errno.EINVAL:  # a zombie has none (mounts_open_common)
            return []
        raise
    return [
        Mount(
            int(mount["id"]),
            os.makedev(int(mount["major"]), int(mount["minor"])),
            _unescape(mount["root"]),
            _unescape(mount["point"]),
            mount["type"],
        )
        for line in text.split("\n")  # the kernel escapes no other end of line that Unicode has
        if (mount := _MOUNT.match(line))
    ]


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda escape: chr(int(escape[1], 8)), text)
