"""Temporary folders that outlive nobody for long: a killed process's are removed by the next
process that makes one.

Each folder is locked (flock(2)) by the process that made it, for as long as that process lives.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "pinwarden-"


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock, None when another process holds it or has
    removed the folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    if not folder.exists():
        os.close(descriptor)
        return None
    return descriptor


def _sweep(purpose: str) -> None:
    """Remove the folders of a purpose that no process holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}{purpose}-*"):
        descriptor = _lock(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Make a folder for one purpose, such as "cluster", and remove it at the end of the ``with``
    block.

    Removes what killed processes left of the same purpose first.
    """
    _sweep(purpose)
    descriptor = None
    while descriptor is None:  # another process may sweep between the two steps
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
        descriptor = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
