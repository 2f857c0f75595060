"""The current users of an object, in a pod or not; a draining group waits for them (M10).

All processes of the node are read, so only the deletion of a group does this. Open files without a
mapping are searched among the first `MOST_DESCRIPTORS` of a process, and for `SECONDS` in all.
A missed process keeps its data: the file outlives its name.
"""

import os
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

from pinwarden.node.linux.procfs import GONE
from pinwarden.node.shm.objects import ObjectSet, object_at
from pinwarden.node.shm.regions import ProcessMaps, RegionFilter

MOST_DESCRIPTORS = 4096
SECONDS = 10.0


def find_users(proc_root: Path, objects: ObjectSet, *, opened: bool) -> list[int]:
    """Return the processes with an object mapped, or with `opened` only open.

    Raises PermissionError, because an unreadable process may use an object.
    """
    wanted = RegionFilter([objects])
    pids = sorted(int(name) for name in os.listdir(proc_root) if name.isdecimal())
    users = {pid for pid in pids if wanted.regions(ProcessMaps(proc_root, pid))}
    deadline = time.monotonic() + SECONDS
    for pid in pids if opened else ():
        if time.monotonic() > deadline:
            break
        if pid not in users and _has_open(proc_root, pid, objects):
            users.add(pid)
    return sorted(users)


def _has_open(proc_root: Path, pid: int, objects: ObjectSet) -> bool:
    with suppress(*GONE), os.scandir(f"{proc_root}/{pid}/fd") as entries:
        for entry in islice(entries, MOST_DESCRIPTORS):
            with suppress(*GONE):
                if objects.has(object_at(entry.path)):
                    return True
    return False
