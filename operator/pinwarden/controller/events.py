"""Kubernetes Events (`events.k8s.io/v1`) of what happened to a limit, for `kubectl describe` and `kubectl events`.

They are made from what changed between two statuses that were written, so there is none for what no status said. Each limit has few of
them: one for a reason at a time, the same text not again within ten minutes, and a small allowance. An Event that cannot be sent is
dropped and counted: the status is what holds.
"""

import asyncio
import logging
import socket
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Literal, NamedTuple

from pinwarden.api.meta import GROUP, VERSION, Condition
from pinwarden.api.pinlimit import PinLimitStatus
from pinwarden.controller.client import Api, ApiError, Json
from pinwarden.controller.limits import SeenLimit
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.work import Bucket

REPEAT_SECONDS = 600.0
_BURST = 10
_PER_SECOND = 1 / 30
_QUEUE = 256
_REMEMBERED = 4096
_NOTE_LENGTH = 1024
_TOLD = ("Accepted", "Applied", "Enforced", "WithinLimit", "Granted")
# What is only on its way, and what the user asked for, is no news.
_QUIET_REASONS = {"Pending", "Audit", "NoPods", "Sampled", "NotReported"}
_log = logging.getLogger(__name__)


class Happening(NamedTuple):
    """One Event to be."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


class Recorder:
    """Makes Events of changes; `run` sends them."""

    def __init__(self, api: Api, metrics: Metrics, clock: Callable[[], float] = monotonic) -> None:
        self._api = api
        self._metrics = metrics
        self._clock = clock
        self._queue: asyncio.Queue[tuple[str, Json]] = asyncio.Queue(_QUEUE)
        self._leave: dict[str, Bucket] = {}
        self._told: dict[tuple[str, Happening], float] = {}
        self._instance = socket.gethostname()

    def changed(self, limit: SeenLimit, before: PinLimitStatus | None, after: PinLimitStatus) -> None:
        """The status of `limit` was written."""
        for happening in happenings(before, after):
            if not self._allowed(limit.uid, happening):
                self._metrics.event_dropped()
                continue
            try:
                self._queue.put_nowait(self._event(limit, happening))
            except asyncio.QueueFull:
                self._metrics.event_dropped()

    async def run(self) -> None:
        """Sends until cancelled."""
        while True:
            path, body = await self._queue.get()
            try:
                await self._api.create(path, body)
            except ApiError as error:
                self._metrics.wrote("event", error.kind)
                _log.warning("an Event was dropped: %s", error)
            else:
                self._metrics.wrote("event")

    def _allowed(self, uid: str, happening: Happening) -> bool:
        now = self._clock()
        if now - self._told.get((uid, happening), -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        leave = self._leave.setdefault(uid, Bucket(_PER_SECOND, _BURST, self._clock))
        if leave.wait() > 0:
            return False
        leave.take()
        self._told[uid, happening] = now
        if len(self._told) > _REMEMBERED:
            self._told = {key: at for key, at in self._told.items() if now - at < REPEAT_SECONDS}
            self._leave = {uid: leave for uid, leave in self._leave.items() if leave.wait() > 0}
        return True

    def _event(self, limit: SeenLimit, happening: Happening) -> tuple[str, Json]:
        namespace = limit.namespace or "default"
        regarding = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": limit.kind.__name__,
            "name": limit.name,
            "uid": limit.uid,
            **({"namespace": limit.namespace} if limit.namespace else {}),
        }
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{limit.name}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": now,
            "type": happening.type,
            "reason": happening.reason,
            "action": happening.action,
            "note": happening.note[:_NOTE_LENGTH],
            "regarding": regarding,
            "reportingController": f"{GROUP}/operator",
            "reportingInstance": self._instance,
        }


def happenings(before: PinLimitStatus | None, after: PinLimitStatus) -> Iterator[Happening]:
    """What a change of status is worth telling, each reason once."""
    old = {each.type: each for each in (before.conditions if before else [])}
    told: set[str] = set()
    for condition in after.conditions:
        if condition.type not in _TOLD or not _is_news(old.get(condition.type), condition):
            continue
        if condition.reason not in told:
            told.add(condition.reason)
            yield _of_condition(condition)
    count = before.overshoot.count if before and before.overshoot else 0
    if after.overshoot and after.overshoot.count > count:
        worst = after.overshoot
        yield Happening(
            "Warning",
            "Overshoot",
            "Enforce",
            f"Use was seen above the limit: {worst.peak_bytes} bytes over for {worst.seconds:g} s at worst.",
        )


def _is_news(old: Condition | None, new: Condition) -> bool:
    if new.reason in _QUIET_REASONS:
        return False
    return old is None or (old.status, old.reason) != (new.status, new.reason)


def _of_condition(condition: Condition) -> Happening:
    good = condition.status == "True"
    reason = "Applied" if condition.reason == "Acknowledged" else condition.reason
    return Happening("Normal" if good else "Warning", reason, _ACTIONS[condition.type], condition.message)


_ACTIONS = {
    "Accepted": "Accept",
    "Applied": "Apply",
    "Enforced": "Enforce",
    "WithinLimit": "Observe",
    "Granted": "Grant",
}
