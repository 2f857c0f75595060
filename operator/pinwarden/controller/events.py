"""Kubernetes Events (`events.k8s.io/v1`) on limits, groups, pods and nodes, for `kubectl describe`
and `kubectl events`.

Events on a limit or group follow from the difference between two written statuses. Their number is
bounded: one per reason and change, no repetition of a text within ten minutes, and a small budget
per object. While a pod starts, its limit is often not enforced for a second or two. So a change of
enforcement causes an Event only if it lasts. Events on a pod report denied calls, see
`denial_events`. If sending fails, the Event is dropped and counted, because the status has the
facts.
"""

import asyncio
import hashlib
import logging
import socket
import uuid
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from time import monotonic
from typing import Literal, NamedTuple

from pinwarden.api.meta import GROUP, VERSION, Condition
from pinwarden.api.pinlimit import Overshoot, PinLimitStatus
from pinwarden.api.reasons import AUDIT, NO_PODS, NOT_LOOKED_AT, NOT_THERE, STARTING
from pinwarden.common.text import short
from pinwarden.controller.client import Api, ApiError, Json
from pinwarden.controller.items import Items
from pinwarden.controller.leader_election import micro_time
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.ratelimit import TokenBucket
from pinwarden.controller.resources import ObservedResource, Status
from pinwarden.plan.types import Pod

REPEAT_SECONDS = 600.0
SETTLE_SECONDS = 10.0
"""How long a change of enforcement must last before an Event."""
_SETTLE_POLL_SECONDS = 1.0
_BURST = 10
_PER_SECOND = 1 / 30
_QUEUE = 256
_REMEMBERED = 4096
_NOTE_BYTES = 1024
_REASON_LENGTH = 128
_STEM_LENGTH = 236  # of 253, for a dot and 16 digits
_SETTLING_CONDITIONS = ("Enforced", "WithinLimit")
_REPORTED_CONDITIONS = ("Accepted", "Applied", "Available", "Granted", "Drained")
# Intermediate and requested states cause no Event.
_QUIET_REASONS = {
    "Pending",
    AUDIT,
    NO_PODS,
    "NoLimits",
    "Sampled",
    "NotReported",
    STARTING,
    NOT_THERE,
    NOT_LOOKED_AT,
}
_log = logging.getLogger(__name__)


class EventDraft(NamedTuple):
    """The content of an Event."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


class _Unsettled(NamedTuple):
    """The statuses before a change and after the newest one. At `due` the change has lasted."""

    resource: ObservedResource
    before: Status | None
    after: Status
    due: float


class EventRecorder:
    """Record Events; `run` and `run_settling` send the Events of limits and groups."""

    def __init__(
        self, api: Api, metrics: Metrics, items: Items, clock: Callable[[], float] = monotonic
    ) -> None:
        self._api = api
        self._metrics = metrics
        self._items = items
        self._clock = clock
        self._queue: asyncio.Queue[tuple[str, Json]] = asyncio.Queue(_QUEUE)
        self._buckets: dict[str, TokenBucket] = {}
        self._sent_at: dict[tuple[str, EventDraft], float] = {}
        self._unsettled: dict[str, _Unsettled] = {}
        self._instance = socket.gethostname()

    def record_change(
        self, resource: ObservedResource, before: Status | None, after: Status
    ) -> None:
        """Record the Events of a written status."""
        for draft in drafts_of_change(before, after):
            self.record(resource, draft)
        if earlier := self._unsettled.get(resource.uid):
            self._unsettled[resource.uid] = earlier._replace(resource=resource, after=after)
        elif any(drafts_of_enforcement(before, after)):
            due = self._clock() + SETTLE_SECONDS
            self._unsettled[resource.uid] = _Unsettled(resource, before, after, due)

    async def run_settling(self) -> None:
        """Record the Events of lasting changes of enforcement until cancelled."""
        while True:
            await asyncio.sleep(_SETTLE_POLL_SECONDS)
            self.settle()

    def settle(self) -> None:
        """Record the Events of each change of enforcement that has lasted."""
        now = self._clock()
        for uid, change in list(self._unsettled.items()):
            if change.due <= now:
                del self._unsettled[uid]
                with self._items.item("events", change.resource.name):
                    for draft in drafts_of_enforcement(change.before, change.after):
                        self.record(change.resource, draft)

    def record(self, resource: ObservedResource, draft: EventDraft) -> None:
        """Record an Event, unless it repeats a recent Event or exceeds the object's budget."""
        if self._allowed(resource.uid, draft):
            self._put(_reference(resource), draft)
        else:
            self._metrics.event_dropped()

    def record_on_node(self, node: str, draft: EventDraft) -> None:
        """Record an Event on the Node; such an Event outlives every namespace."""
        if self._allowed(node, draft):
            # The kubelet also uses the name of the Node as the UID.
            self._put({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}, draft)
        else:
            self._metrics.event_dropped()

    def record_unreadable(self, regarding: Json, problem: str) -> None:
        """Record that the operator cannot read the object `regarding` and ignores it."""
        note = f"pinwarden cannot read this object and continues without it: {problem}"
        draft = EventDraft("Warning", "NotUnderstood", "Read", note)
        uid, name = regarding.get("uid"), regarding.get("name")
        if uid and name and self._allowed(uid, draft):
            self._put(regarding, draft)

    def _put(self, regarding: Json, draft: EventDraft) -> None:
        try:
            self._queue.put_nowait(self._event(regarding, draft))
        except asyncio.QueueFull:
            self._metrics.event_dropped()

    def bucket_of(self, uid: str) -> TokenBucket:
        """Return the Event budget of the object with this UID."""
        if len(self._buckets) > _REMEMBERED:
            self._buckets = {
                uid: bucket for uid, bucket in self._buckets.items() if bucket.delay() > 0
            }
        return self._buckets.setdefault(uid, TokenBucket(_PER_SECOND, _BURST, self._clock))

    async def send_denial(
        self, pod: Pod, limit: ObservedResource | None, note: str, time: datetime, identity: str
    ) -> None:
        """Send an Event about a denied call of the pod; equal identities make one Event."""
        # kubectl and the kubelet refer to a static pod by its hash, not by its mirror pod's UID.
        regarding = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.cgroup_uid,
        }
        digits = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        draft = EventDraft("Warning", "PinRefused", "Refuse", note)
        path, body = self._event(regarding, draft, time, digits)
        if limit is not None:
            body["related"] = _reference(limit)
        await self._send(path, body)

    async def run(self) -> None:
        """Send the Events of limits and groups until cancelled."""
        while True:
            path, body = await self._queue.get()
            with self._items.item("events", body["regarding"]["name"]):
                await self._send(path, body)

    async def _send(self, path: str, body: Json) -> None:
        try:
            await self._api.create(path, body)
        except ApiError as error:
            self._metrics.wrote("event", error.kind)
            # 409: the server already has this Event.
            if error.status != 409 and not _is_namespace_terminating(error):
                _log.warning("cannot send an Event, dropping the Event: %s", error)
        else:
            self._metrics.wrote("event")

    def _allowed(self, uid: str, draft: EventDraft) -> bool:
        now = self._clock()
        if now - self._sent_at.get((uid, draft), -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        bucket = self.bucket_of(uid)
        if bucket.delay() > 0:
            return False
        bucket.take()
        self._sent_at[uid, draft] = now
        if len(self._sent_at) > _REMEMBERED:
            self._sent_at = {
                key: at for key, at in self._sent_at.items() if now - at < REPEAT_SECONDS
            }
        return True

    def _event(
        self, regarding: Json, draft: EventDraft, time: datetime | None = None, digits: str = ""
    ) -> tuple[str, Json]:
        """Return the path and the body of an Event, by default of now and with random digits."""
        namespace = regarding.get("namespace") or "default"
        stem = regarding["name"][:_STEM_LENGTH].rstrip("-.")
        name = f"{stem}.{digits or uuid.uuid4().hex[:16]}"
        return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": micro_time(time),
            "type": draft.type,
            "reason": draft.reason[:_REASON_LENGTH],
            "action": draft.action,
            "note": draft.note.encode()[:_NOTE_BYTES].decode(errors="ignore"),
            "regarding": regarding,
            "reportingController": f"{GROUP}/operator",
            "reportingInstance": self._instance,
        }


def _is_namespace_terminating(error: ApiError) -> bool:
    """Return whether the server rejected the Event because its namespace is being deleted."""
    return error.status == 403 and "is being terminated" in str(error)


def _reference(limit: ObservedResource) -> Json:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": limit.kind.__name__,
        "name": limit.name,
        "uid": limit.uid,
        **({"namespace": limit.namespace} if limit.namespace else {}),
    }


def drafts_of_change(before: Status | None, after: Status) -> Iterator[EventDraft]:
    """Yield the Events for a change of status, one per reason, without those of enforcement."""
    for condition in _news(before, after, _REPORTED_CONDITIONS).values():
        yield _draft_of_condition(condition)
    worst, known = _overshoot(after), _overshoot(before)
    if worst and worst.count > (known.count if known else 0):
        yield EventDraft(
            "Warning",
            "Overshoot",
            "Enforce",
            f"Samples exceeded the limit, at worst by {short(worst.peak_bytes)} "
            f"for {worst.seconds:g} s.",
        )


def drafts_of_enforcement(before: Status | None, after: Status) -> Iterator[EventDraft]:
    """Yield the Events for a change of enforcement, one per reason, none for a known reason."""
    told = {item.reason for item in after.conditions if item.type in _REPORTED_CONDITIONS}
    for reason, condition in _news(before, after, _SETTLING_CONDITIONS).items():
        if reason not in told:
            yield _draft_of_condition(condition)


def _news(before: Status | None, after: Status, types: Collection[str]) -> dict[str, Condition]:
    """Return the first changed condition of these types for each reason."""
    old = {condition.type: condition for condition in (before.conditions if before else [])}
    news: dict[str, Condition] = {}
    for condition in after.conditions:
        if condition.type in types and _is_news(old.get(condition.type), condition):
            news.setdefault(condition.reason, condition)
    return news


def _overshoot(status: Status | None) -> Overshoot | None:
    return status.overshoot if isinstance(status, PinLimitStatus) else None


def _is_news(old: Condition | None, new: Condition) -> bool:
    if new.reason in _QUIET_REASONS:
        return False
    return old is None or (old.status, old.reason) != (new.status, new.reason)


def _draft_of_condition(condition: Condition) -> EventDraft:
    good = condition.status == "True"
    reason = "Applied" if condition.reason == "Acknowledged" else condition.reason
    return EventDraft(
        "Normal" if good else "Warning", reason, _ACTIONS[condition.type], condition.message
    )


_ACTIONS = {
    "Accepted": "Accept",
    "Applied": "Apply",
    "Available": "Find",
    "Enforced": "Enforce",
    "WithinLimit": "Observe",
    "Granted": "Grant",
    "Drained": "Drain",
}
