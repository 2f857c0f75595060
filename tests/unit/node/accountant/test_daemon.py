"""The accountant's process: its status is fresh only while it accounts."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pinwarden.node.accountant import daemon
from pinwarden.node.accountant.daemon import AccountantSettings
from pinwarden.node.agent.accountant_reader import AccountantReader
from pinwarden.node.state import accountant_status
from pinwarden.node.state.accountant_status import AccountantStatus
from pinwarden.node.state.shutdown import ShutdownError

LONG_AGO = time.time() - 3600


class Accountant:
    """An accountant with the given results of its rounds."""

    status = AccountantStatus()

    def __init__(self, *rounds: float | Exception) -> None:
        self._rounds = list(rounds)

    def __call__(self, **_: Any) -> "Accountant":
        return self

    def tick(self) -> float:
        if not self._rounds:
            raise ShutdownError
        match self._rounds.pop(0):
            case Exception() as error:
                raise error
            case wait:
                return wait


def left_behind(folder: Path) -> AccountantReader:
    """Return a reader of the status of a long gone accountant."""
    accountant_status.save(folder / accountant_status.NAME, AccountantStatus())
    os.utime(folder / accountant_status.NAME, (LONG_AGO, LONG_AGO))
    return AccountantReader(folder / accountant_status.NAME)


def settings(folder: Path) -> AccountantSettings:
    return AccountantSettings(
        folder / "none.json", folder, Path("/sys/fs/cgroup"), Path("/proc"), 0
    )


@pytest.mark.rule("H2")
@pytest.mark.parametrize("error", [OSError("no"), ValueError("no")])
def test_accountant_with_failing_rounds_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    seen = left_behind(tmp_path)
    monkeypatch.setattr(daemon, "_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(daemon, "Accountant", Accountant(error, error))
    daemon.run(settings(tmp_path))
    seen.poll()
    assert seen.silent


@pytest.mark.rule("H2")
def test_accountant_between_rounds_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = left_behind(tmp_path)
    status_file = tmp_path / accountant_status.NAME
    monkeypatch.setattr(daemon, "_RENEW_SECONDS", 0.05)
    monkeypatch.setattr(daemon, "Accountant", Accountant(3600.0))
    first: list[int] = []

    def watch() -> None:
        deadline = time.monotonic() + 60
        while status_file.stat().st_mtime <= LONG_AGO + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        first.append(status_file.stat().st_mtime_ns)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    watching = threading.Thread(target=watch)
    watching.start()
    daemon.run(settings(tmp_path))
    watching.join()
    seen.poll()
    assert not seen.silent
    assert status_file.stat().st_mtime_ns > first[0]
