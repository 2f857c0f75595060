"""State files: a JSON file that is either complete or set aside.

A `StateFile` has a version, a digest of its content, and the content. It is replaced as a whole:
written to a second file, synced, renamed, and the directory synced. So a crash leaves the earlier
file or the new one.

A truncated, altered or huge file, or a file of another version, is set aside as
`<name>.corrupt-<n>` with a warning. It is never read again, and never ends the process. The same
holds for a file without read permission, and for everything but a regular file.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pinwarden.common.guard import shown

_Content = TypeVar("_Content")
_log = logging.getLogger(__name__)
_LOCK_POLL_SECONDS = 0.1
MOST_BYTES = 64 << 20
"""A longer file is not read.

An API object has 1.5 MiB at most, and 100,000 processes take 8 MiB.
"""
UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""Exceptions of parsers, and of the code behind them, for unexpected content."""
_MOST_ASIDE = 8
_NOT_READABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO)


class StateFile:
    """One file and the version of its format, with one writer at a time."""

    def __init__(self, path: Path, version: int) -> None:
        self._path = path
        self._version = version

    def load(self, parse: Callable[[Any], _Content]) -> _Content | None:
        """Return the parsed content, None without a usable file. Raises OSError.

        A file is also unusable if `parse` raises one of `UNUSABLE`.
        """
        try:
            return parse(self._decode(read_whole(self._path)))
        except FileNotFoundError:
            return None
        except UNUSABLE as error:
            set_aside(self._path, str(error))
            return None

    def read(self) -> Any:
        """Return the content for another process than the writer, which sets nothing aside.

        Raises OSError, and ValueError for an unusable file.
        """
        try:
            return self._decode(read_whole(self._path))
        except UNUSABLE as error:
            raise ValueError(f"it is not usable: {error}") from error

    def save(self, content: Any) -> None:
        """Replace the file and sync it. Raises OSError, and then the earlier file stays."""
        fields = self._to_fields(content)
        whole = {"version": self._version, "digest": _digest(content), **fields}
        write_atomically(self._path, json.dumps(whole).encode())

    def _decode(self, data: bytes) -> Any:
        whole: Any = json.loads(data)
        if not isinstance(whole, dict) or whole.get("version") != self._version:
            raise ValueError(f"not a file of version {self._version}")
        content = self._from_fields(whole)
        if whole.get("digest") != _digest(content):
            raise ValueError("the digest does not match")
        return content

    def _to_fields(self, content: Any) -> dict[str, Any]:
        return {"content": content}

    def _from_fields(self, whole: dict[str, Any]) -> Any:
        return whole.get("content")


class PolledFile:
    """A file of another process, read again after it was replaced or its time was renewed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._failure = ""

    def read_if_changed(self, load: Callable[[Path], _Content | None]) -> _Content | None:
        """Return the result of `load` if the file exists and changed, else None.

        OSError and ValueError are logged once for each cause, and the next call tries again.
        """
        try:
            if not self._changed() and not self._failure:
                return None
            content = load(self.path)
        except (OSError, ValueError) as error:
            if self._failure != (failure := str(error)):
                _log.error("cannot read %s, its last content stays in use: %s", self.path, error)
                self._failure = failure
            return None
        self._failure = ""
        return content

    def _changed(self) -> bool:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        before, self._seen = self._seen, (status.st_ino, status.st_mtime_ns)
        return before != self._seen

    @property
    def age(self) -> float:
        """Seconds since the file's time at the last call; infinite before the first file."""
        return time.time() - self._seen[1] / 1e9 if self._seen else float("inf")


def read_whole(path: Path) -> bytes:
    """Return the content of a regular file, without waiting for a FIFO.

    Raises OSError, and ValueError if the file is not regular or this process may not read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_READABLE:
            raise ValueError(f"cannot be opened: {error.strerror}") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES} bytes")
    return data


def set_aside(path: Path, reason: str) -> None:
    """Rename an unusable file, with a warning.

    The first such files and the latest stay on disk. Raises OSError.
    """
    for number in range(1, _MOST_ASIDE + 1):
        aside = path.with_name(f"{path.name}.corrupt-{number}")
        if not os.path.lexists(aside):
            break
    path.rename(aside)
    _log.warning("%s is not usable (%s), set aside as %s", path, shown(reason), aside)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by a synced file with mode 0600. Raises OSError."""
    beside = path.with_name(f"{path.name}.new")
    with open(beside, "wb", opener=_owner_only) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def file_lock(
    path: Path,
    patience: float = math.inf,
    *,
    waiting: str = "",
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Lock `path`, after a wait of at most `patience` seconds.

    The message `waiting` is logged once, and `on_wait` is called before each pause of the wait.
    Each attempt opens the file again: another process may have replaced the file meanwhile. The
    kernel releases the lock when its owner ends.

    Raises TimeoutError after the wait, OSError if the file cannot be opened.
    """
    deadline = time.monotonic() + patience
    while True:
        with open(path, "wb", opener=_owner_only) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"another process has locked {path}") from error
            else:
                yield
                return
        if waiting:
            _log.info(waiting)
            waiting = ""
        on_wait()
        time.sleep(_LOCK_POLL_SECONDS)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
