"""Kubernetes Events (`events.k8s.io/v1`) of what happened to a limit, a group or a pod, for `kubectl describe` and `kubectl events`.

Those of a limit or group are made from what changed between two statuses that were written, so there is none for what no status said. Each
has few of them: one for a reason at a time, the same text not again within ten minutes, and a small allowance. Those of a pod are of what
was refused to it, see `refusals`. An Event that cannot be sent is dropped and counted: the status is what holds.
"""

import asyncio
import hashlib
import logging
import socket
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Literal, NamedTuple

from pinwarden.api.meta import GROUP, VERSION, Condition
from pinwarden.api.pinlimit import Overshoot, PinLimitStatus
from pinwarden.api.reasons import NO_PODS, STARTING
from pinwarden.common.text import short
from pinwarden.controller.client import Api, ApiError, Json
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.ratelimit import Bucket
from pinwarden.controller.resources import Seen, Status
from pinwarden.plan.types import Pod

REPEAT_SECONDS = 600.0
_BURST = 10
_PER_SECOND = 1 / 30
_QUEUE = 256
_REMEMBERED = 4096
_NOTE_BYTES = 1024
_REASON_LENGTH = 128
_STEM_LENGTH = 236  # of 253, for a dot and 16 digits
_TOLD = ("Accepted", "Applied", "Available", "Enforced", "WithinLimit", "Granted", "Drained")
# What is only on its way, and what the user asked for, is no news.
_QUIET_REASONS = {
    "Pending",
    "Audit",
    NO_PODS,
    "NoLimits",
    "Sampled",
    "NotReported",
    STARTING,
    "NotThere",
    "NotLookedAt",
}
_log = logging.getLogger(__name__)


class Happening(NamedTuple):
    """One Event to be."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


class Recorder:
    """Makes Events; `run` sends those of limits and groups."""

    def __init__(
        self, api: Api, metrics: Metrics, items: Items, clock: Callable[[], float] = monotonic
    ) -> None:
        self._api = api
        self._metrics = metrics
        self._items = items
        self._clock = clock
        self._queue: asyncio.Queue[tuple[str, Json]] = asyncio.Queue(_QUEUE)
        self._leave: dict[str, Bucket] = {}
        self._told: dict[tuple[str, Happening], float] = {}
        self._instance = socket.gethostname()

    def changed(self, resource: Seen, before: Status | None, after: Status) -> None:
        """The status of `resource` was written."""
        for happening in happenings(before, after):
            self.happened(resource, happening)

    def happened(self, resource: Seen, happening: Happening) -> None:
        """Have it told, unless it was lately or is one too many."""
        if not self._allowed(resource.uid, happening):
            self._metrics.event_dropped()
            return
        self._put(self._of_resource(resource, happening))

    def _put(self, event: tuple[str, Json]) -> None:
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._metrics.event_dropped()

    def happened_on(self, node: str, happening: Happening) -> None:
        """Have it told on the Node, whose Events outlive every namespace."""
        if not self._allowed(node, happening):
            self._metrics.event_dropped()
            return
        regarding = {
            "apiVersion": "v1",
            "kind": "Node",
            "name": node,
            "uid": node,
        }  # as the kubelet refers to it
        digits = uuid.uuid4().hex[:16]
        self._put(self._event("default", node, digits, regarding, happening, datetime.now(UTC)))

    def failed(self, regarding: Json, problem: str) -> None:
        """The operator goes on without the object that is `regarding`, as it cannot make anything of it."""
        note = f"pinwarden cannot read this object and goes on without it: {problem}"
        happening = Happening("Warning", "NotUnderstood", "Read", note)
        uid, name = regarding.get("uid") or "", regarding.get("name") or ""
        if not (uid and name and self._allowed(uid, happening)):
            return
        space, digits = regarding.get("namespace") or "default", uuid.uuid4().hex[:16]
        self._put(self._event(space, name, digits, regarding, happening, datetime.now(UTC)))

    def leave(self, uid: str) -> Bucket:
        """The allowance of the object with this UID."""
        if len(self._leave) > _REMEMBERED:
            self._leave = {uid: leave for uid, leave in self._leave.items() if leave.wait() > 0}
        return self._leave.setdefault(uid, Bucket(_PER_SECOND, _BURST, self._clock))

    async def refused(self, pod: Pod, limit: Seen | None, note: str, time: datetime, identity: str) -> None:
        """Sends that a call of the pod was refused, for the limit if there is one; two of one identity are one Event."""
        regarding = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.cgroup_uid,  # also of a static pod: kubectl and the kubelet go by its hash, not by its mirror's UID
        }
        digits = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        happening = Happening("Warning", "PinRefused", "Refuse", note)
        path, body = self._event(pod.namespace, pod.name, digits, regarding, happening, time)
        if limit is not None:
            body["related"] = _reference(limit)
        await self._send(path, body)

    async def run(self) -> None:
        """Sends the Events of limits and groups until cancelled."""
        while True:
            path, body = await self._queue.get()
            with self._items.item("events", body["regarding"]["name"]):
                await self._send(path, body)

    async def _send(self, path: str, body: Json) -> None:
        try:
            await self._api.create(path, body)
        except ApiError as error:
            self._metrics.wrote("event", error.kind)
            if error.status != 409 and not _is_of_ending_namespace(error):  # 409: the server has it already
                _log.warning("an Event was dropped: %s", error)
        else:
            self._metrics.wrote("event")

    def _allowed(self, uid: str, happening: Happening) -> bool:
        now = self._clock()
        if now - self._told.get((uid, happening), -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        leave = self.leave(uid)
        if leave.wait() > 0:
            return False
        leave.take()
        self._told[uid, happening] = now
        if len(self._told) > _REMEMBERED:
            self._told = {key: at for key, at in self._told.items() if now - at < REPEAT_SECONDS}
        return True

    def _of_resource(self, resource: Seen, happening: Happening) -> tuple[str, Json]:
        namespace, digits = resource.namespace or "default", uuid.uuid4().hex[:16]
        reference = _reference(resource)
        return self._event(namespace, resource.name, digits, reference, happening, datetime.now(UTC))

    def _event(
        self, namespace: str, stem: str, digits: str, regarding: Json, happening: Happening, time: datetime
    ) -> tuple[str, Json]:
        """The path and the body of an Event whose name is made of a stem and 16 digits."""
        name = f"{stem[:_STEM_LENGTH].rstrip('-.')}.{digits}"
        return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": happening.type,
            "reason": happening.reason[:_REASON_LENGTH],
            "action": happening.action,
            "note": happening.note.encode()[:_NOTE_BYTES].decode(errors="ignore"),
            "regarding": regarding,
            "reportingController": f"{GROUP}/operator",
            "reportingInstance": self._instance,
        }


def _is_of_ending_namespace(error: ApiError) -> bool:
    """Whether the server takes no new object in the namespace because it is being deleted; nobody could read the Event for long."""
    return error.status == 403 and "is being terminated" in str(error)


def _reference(limit: Seen) -> Json:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": limit.kind.__name__,
        "name": limit.name,
        "uid": limit.uid,
        **({"namespace": limit.namespace} if limit.namespace else {}),
    }


def happenings(before: Status | None, after: Status) -> Iterator[Happening]:
    """What a change of status is worth telling, each reason once."""
    old = {each.type: each for each in (before.conditions if before else [])}
    told: set[str] = set()
    for condition in after.conditions:
        if condition.type not in _TOLD or not _is_news(old.get(condition.type), condition):
            continue
        if condition.reason not in told:
            told.add(condition.reason)
            yield _of_condition(condition)
    worst, known = _overshoot(after), _overshoot(before)
    if worst and worst.count > (known.count if known else 0):
        yield Happening(
            "Warning",
            "Overshoot",
            "Enforce",
            f"Use was seen above the limit: {short(worst.peak_bytes)} over for {worst.seconds:g} s at worst.",
        )


def _overshoot(status: Status | None) -> Overshoot | None:
    return status.overshoot if isinstance(status, PinLimitStatus) else None


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
    "Available": "Find",
    "Enforced": "Enforce",
    "WithinLimit": "Observe",
    "Granted": "Grant",
    "Drained": "Drain",
}
