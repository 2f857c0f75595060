"""Who uses an object at this moment, in a pod or not: what a draining group waits for (M10).

All processes of the node are read, which is why only a group that is being deleted asks. Who has a file open and not mapped is looked for
among its first `MOST_DESCRIPTORS` and for `SECONDS` in all: its data stays for it anyway, when the name is gone.
"""

import os
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

from pinwarden.node.linux.namespaces import list_pids
from pinwarden.node.shm.objects import ObjectSet, object_at
from pinwarden.node.shm.regions import ProcessMaps, RegionFilter

MOST_DESCRIPTORS = 4096
SECONDS = 10.0


def users(proc_root: Path, extent: ObjectSet, *, opened: bool) -> list[int]:
    """The processes that have some of it mapped; with `opened` also those that have a file of it open.

    Raises PermissionError: who cannot be looked at may be one.
    """
    wanted = RegionFilter([extent])
    everyone = list_pids(proc_root)
    found = {pid for pid in everyone if wanted.regions(ProcessMaps(proc_root, pid))}
    deadline = time.monotonic() + SECONDS
    for pid in everyone if opened else ():
        if time.monotonic() > deadline:
            break
        if pid not in found and _has_open(proc_root, pid, extent):
            found.add(pid)
    return sorted(found)


def _has_open(proc_root: Path, pid: int, extent: ObjectSet) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError), os.scandir(f"{proc_root}/{pid}/fd") as listed:
        for entry in islice(listed, MOST_DESCRIPTORS):
            with suppress(FileNotFoundError, ProcessLookupError):
                if extent.has(object_at(entry.path)):
                    return True
    return False
