"""Leader election: a Lease (`coordination.k8s.io/v1`) allows one replica to write.

The leader renews its Lease every two seconds. The leader may write until `RENEW_SECONDS` after the
*sending* of its last successful renewal. Its monotonic clock also advances while the process is
stopped. A leader therefore stops writing before the Lease expires for others, and a suspended
leader writes nothing when it continues.

Other replicas take the Lease when *they* have observed no change for `DURATION_SECONDS`, so clocks
need not agree. A replica without the Lease stops writing and becomes a candidate again.

The `leaderelection` of the kubernetes package compares times of day, counts a renewal from its
answer, ends on the first connection error, and never releases the Lease. Each update of the
operator would wait for the expiry.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic

from pinwarden.controller.client import Api, ApiError, Json
from pinwarden.controller.metrics import Metrics

DURATION_SECONDS = 8
RENEW_SECONDS = 6.0
PERIOD_SECONDS = 2.0
POLL_SECONDS = 1.0
_REQUEST_SECONDS = 3.0
NAME = "pinwarden-operator"
UNINSTALL = "pinwarden-uninstall"
"""The prefix of the identity of `pinwarden uninstall`, after which no candidate creates a Lease."""
_log = logging.getLogger(__name__)


class LeaderElector:
    """A candidate for the Lease in `namespace`.

    `renewed` is set after each acquisition or renewal.
    """

    def __init__(self, api: Api, namespace: str, metrics: Metrics) -> None:
        self._api = api
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._leases}/{NAME}"
        self._metrics = metrics
        self.renewed = asyncio.Event()
        self.identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4()}"
        self._deadline = 0.0
        self._seen: tuple[object, ...] = ()
        self._seen_at = 0.0
        self._was_leading = False

    def leading(self) -> bool:
        """Return whether this replica may send a write now."""
        return monotonic() < self._deadline

    async def run(self) -> None:
        """Acquire and renew the Lease until cancelled."""
        failing = False
        while True:
            try:
                await self._try_once()
                failing = False
            except ApiError as error:
                if not failing:
                    _log.warning("cannot acquire the Lease, retrying: %s", error)
                failing = True
            if self._was_leading and not self.leading():
                self._was_leading = False
                _log.warning("this replica lost the Lease and writes nothing")
            await asyncio.sleep(
                PERIOD_SECONDS if self._was_leading and not failing else POLL_SECONDS
            )

    async def release(self) -> None:
        """Stop writing and release the Lease, so that another replica acquires it at once."""
        if not self.leading():
            return
        self._deadline = 0.0
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                lease = await self._api.get(self._path)
                if lease["spec"].get("holderIdentity") == self.identity:
                    lease["spec"] |= {
                        "holderIdentity": "",
                        "leaseDurationSeconds": 1,
                        "renewTime": micro_time(),
                    }
                    await self._api.replace(self._path, lease)
        except (ApiError, TimeoutError) as error:
            _log.warning("cannot release the Lease, which will expire: %s", error)

    async def _try_once(self) -> None:
        """Acquire or renew an available Lease."""
        sent = monotonic()
        try:
            lease = await self._api.get(self._path, _REQUEST_SECONDS)
        except ApiError as error:
            if error.status != 404:
                raise
            if self._seen and str(self._seen[0]).startswith(UNINSTALL):
                return
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": NAME},
            }
            await self._write(
                self._api.create, self._leases, {**body, "spec": self._spec({})}, sent
            )
            return
        if not self._is_available(lease.get("spec") or {}):
            self._deadline = 0.0
            return
        sent = monotonic()
        lease["spec"] = self._spec(lease.get("spec") or {})
        await self._write(self._api.replace, self._path, lease, sent)

    async def _write(
        self, write: Callable[..., object], path: str, body: Json, sent: float
    ) -> None:
        try:
            await write(path, body, _REQUEST_SECONDS)  # type: ignore[misc]
        except ApiError as error:
            self._metrics.wrote("lease", error.kind)
            if error.status == 409:  # another replica was faster
                return
            raise
        self._metrics.wrote("lease")
        self._deadline = sent + RENEW_SECONDS
        if not self._was_leading:
            self._was_leading = True
            _log.info("this replica holds the Lease, as %s", self.identity)
        self.renewed.set()

    def _is_available(self, spec: Json) -> bool:
        """Return whether the Lease is free, expired, or already this replica's."""
        holder = spec.get("holderIdentity")
        if not holder or holder == self.identity:
            return True
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, monotonic()
        return monotonic() - self._seen_at > (spec.get("leaseDurationSeconds") or DURATION_SECONDS)

    def _spec(self, old: Json) -> Json:
        mine = old.get("holderIdentity") == self.identity
        now = micro_time()
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "acquireTime": old.get("acquireTime") if mine else now,
            "renewTime": now,
            "leaseTransitions": (old.get("leaseTransitions") or 0) + (not mine),
        }


def micro_time(time: datetime | None = None) -> str:
    """Return a time, by default now, as a `MicroTime` of the Kubernetes API."""
    time = time.astimezone(UTC) if time else datetime.now(UTC)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
