"""The accountant as a process: `pinwarden accountant`.

One accountant at a time works on a node. A second one waits for the lock, so an upgrade starts the
new accountant before it ends the old one. The agent writes the configuration to a file, so
the accountant needs no API server and no token. An alarm ends the process if a round stalls,
and the kubelet restarts its container. The process's end changes nothing: objects and borrows stay
(H3).
"""

import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pinwarden.common.guard import Guard
from pinwarden.node.accountant.accountant import KINDS as ACCOUNTANT_KINDS
from pinwarden.node.accountant.accountant import Accountant
from pinwarden.node.state import accountant_status
from pinwarden.node.state.config import ConfigFollower
from pinwarden.node.state.shutdown import ShutdownError, shutdown_on_signals
from pinwarden.node.state.statefile import file_lock

LOCK = "shared.lock"
KINDS = (*ACCOUNTANT_KINDS, "configuration")
"""The kinds of guarded items."""
STALL_SECONDS = 600
_POLL_SECONDS = 0.1
_RENEW_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccountantSettings:
    """Paths: `configuration` is the agent's file, `run_dir` is in a tmpfs. `budget` is in bytes."""

    configuration: Path
    run_dir: Path
    cgroup_root: Path
    proc_root: Path
    budget: int


def run(settings: AccountantSettings) -> None:
    """Account until SIGTERM or SIGINT.

    Raises OSError, and ValueError if there is no cgroup hierarchy.
    """
    with shutdown_on_signals(), suppress(ShutdownError):
        settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(
            settings.run_dir / LOCK,
            waiting="another accountant works on this node; this accountant stands by",
        ):
            guard = Guard(KINDS)
            accountant = Accountant(
                guard=guard,
                cgroup_root=settings.cgroup_root,
                proc_root=settings.proc_root,
                run_dir=settings.run_dir,
                budget=settings.budget,
            )
            _log.info("the accountant works, process %d", os.getpid())
            _work(settings, accountant, guard)


def _work(settings: AccountantSettings, accountant: Accountant, guard: Guard) -> None:
    follower = ConfigFollower(settings.configuration)
    path = settings.run_dir / accountant_status.NAME
    due = renewed = 0.0
    accounts = False
    while True:
        signal.alarm(STALL_SECONDS)
        if accounts and time.monotonic() >= renewed:
            renewed = time.monotonic() + _RENEW_SECONDS
            with suppress(OSError):
                os.utime(path)
        with guard.item("configuration"):
            if configuration := follower.read_if_changed():
                accountant.configure(configuration.spec)
                due = 0.0
        if time.monotonic() >= due:
            wait = _round(path, accountant, guard)
            accounts = wait is not None
            due = time.monotonic() + (_RETRY_SECONDS if wait is None else wait)
        time.sleep(_POLL_SECONDS)


def _round(path: Path, accountant: Accountant, guard: Guard) -> float | None:
    """Do a round, and return the seconds until the next one.

    Return None if the round failed. The last status stays then.
    """
    with guard.item("round"):
        wait = accountant.tick()
        accountant_status.save(path, accountant.status)
        return wait
    return None
