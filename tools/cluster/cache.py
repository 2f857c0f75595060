"""A cache of built pieces: one folder per piece and content hash, complete or absent.

A piece is built in a draft folder beside its place and renamed into it, so a reader never sees half
of one and an interrupted build leaves nothing that counts. A file lock per piece makes a second
process wait for the first one's build instead of repeating it. Only the lock's holder touches the
draft: a draft that is there already is what a killed build left. The name carries the hash of
everything the build depends on, so a changed recipe or dependency gets a new folder and nothing is
ever overwritten.
"""

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.commands import check_stopped
from cluster.errors import ClusterError
from cluster.paths import cache_root

POLL_SECONDS = 0.1


def progress(text: str) -> None:
    """Tell the user what is going on, at once, apart from the program's output."""
    print(text, file=sys.stderr, flush=True)


def digest(inputs: Iterable[bytes]) -> str:
    """Return 16 hex digits that differ when any input, or the split between inputs, differs."""
    total = hashlib.sha256()
    for part in inputs:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock of this name; raises ClusterError when the commands of all threads are
    ended while it waits.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check_stopped()
                time.sleep(POLL_SECONDS)
        yield


def cached(piece: str, inputs: Iterable[bytes], build: Callable[[Path], None]) -> Path:
    """Return the folder of a piece, calling ``build`` with an empty folder to fill when it is not
    there yet.

    Raises ClusterError when the folder cannot be written. Whatever ``build`` raises is passed on.
    The piece stays absent then.
    """
    place = cache_root() / f"{piece}-{digest(inputs)}"
    if place.is_dir():
        return place
    with locked(place.name):
        if place.is_dir():
            return place
        draft = place.with_name(f"{place.name}.tmp")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            build(draft)
            draft.rename(place)
        except OSError as error:
            raise ClusterError(f"{piece} cannot be built: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place
