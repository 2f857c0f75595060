"""Who uses an object at this moment, in a pod or not: what a draining group waits for (M10).

All processes of the node are read, which is why only a group that is being deleted asks.
"""

import os
from contextlib import suppress
from pathlib import Path

from pinwarden.agent.shared.host import processes
from pinwarden.agent.shared.maps import Process, Wanted
from pinwarden.agent.shared.objects import Extent, ObjectId


def users(proc_root: Path, extent: Extent, *, opened: bool) -> list[int]:
    """The processes that have some of it mapped; with `opened` also those that have a file of it open.

    Raises PermissionError: who cannot be looked at may be one.
    """
    wanted = Wanted([extent])
    return [
        pid
        for pid in processes(proc_root)
        if wanted.regions(Process(proc_root, pid)) or (opened and _has_open(proc_root, pid, extent))
    ]


def _has_open(proc_root: Path, pid: int, extent: Extent) -> bool:
    folder = f"{proc_root}/{pid}/fd"
    with suppress(FileNotFoundError, ProcessLookupError):
        for number in os.listdir(folder):
            with suppress(FileNotFoundError, ProcessLookupError):
                about = os.stat(f"{folder}/{number}")
                if extent.has(ObjectId(about.st_dev, about.st_ino)):
                    return True
    return False
