"""A cache of built pieces: one folder per piece and content hash, complete or absent.

A piece is built in a temporary folder beside its place and renamed into it, so a reader never sees half of one and
an interrupted build leaves nothing that counts. A file lock per piece makes a second process wait for the first
one's build instead of repeating it. The name carries the hash of everything the build depends on, so a changed
recipe or dependency gets a new folder and nothing is ever overwritten.
"""

import fcntl
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cluster.paths import cache_root


def progress(text: str) -> None:
    """Tell the user what is going on, at once, apart from the program's output."""
    print(text, file=sys.stderr, flush=True)


def digest(inputs: Iterable[bytes]) -> str:
    """Return 16 hex digits that differ when any input, or the split between inputs, differs."""
    total = hashlib.sha256()
    for part in inputs:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def cached(piece: str, inputs: Iterable[bytes], build: Callable[[Path], None]) -> Path:
    """Return the folder of a piece, calling ``build`` with an empty folder to fill when it is not there yet.

    Whatever ``build`` raises is passed on, and the piece stays absent.
    """
    root = cache_root()
    place = root / f"{piece}-{digest(inputs)}"
    if place.is_dir():
        return place
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.is_dir():
            return place
        draft = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".tmp", dir=root))
        try:
            began = time.monotonic()
            progress(f"building {piece} ...")
            build(draft)
            draft.rename(place)
            progress(f"built {piece} in {time.monotonic() - began:.0f} s: {place}")
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place
