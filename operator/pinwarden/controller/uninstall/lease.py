"""The operator's Lease during `pinwarden uninstall`: taken, renewed, and released on failure.

If the command is killed, the renewals stop, and a replica of the operator continues.
`LEFT_LEASE_SECONDS` applies at the end, shortly before the operator is deleted.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TypeVar

from pinwarden.controller import leader_election
from pinwarden.controller.client import Api, ApiError, Json

LEASE_SECONDS = 60
LEFT_LEASE_SECONDS = 3600
_TRIES = 6
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class UninstallError(Exception):
    """The uninstallation failed, and the operator restores its changes.

    The message is for users.
    """


class OperatorLease:
    """The operator's Lease, if it exists."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = (
            f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{leader_election.NAME}"
        )
        self._identity = f"{leader_election.UNINSTALL}_{uuid.uuid4()}"
        self._held = False
        self._renewed = 0.0

    async def take(self) -> bool:
        """Take the Lease from any holder, and return False if there is no Lease."""
        self._held = await self._replace(LEASE_SECONDS, from_anyone=True)
        return self._held

    async def renew(self) -> None:
        """Renew the Lease. Raises UninstallError if another process has taken it meanwhile."""
        if self._held and monotonic() - self._renewed > LEASE_SECONDS / 10:
            await self._replace(LEASE_SECONDS)

    async def release(self) -> None:
        """Release the Lease; if the request fails, the Lease expires."""
        if not self._held:
            return
        try:
            await self._replace(1, holder="")
        except (ApiError, UninstallError) as error:
            _log.error("cannot release the Lease, which expires in %d s: %s", LEASE_SECONDS, error)

    async def hand_over(self) -> bool:
        """Let the operator's Deployment own the Lease; without one, release and return False."""
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{leader_election.NAME}"
        try:
            deployment = await self._api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            await self.release()
            return False
        owner = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": leader_election.NAME,
            "uid": deployment["metadata"]["uid"],
        }
        if self._held:
            await self._replace(LEFT_LEASE_SECONDS, owners=[owner])
        return True

    async def _replace(
        self,
        seconds: int,
        *,
        holder: str | None = None,
        from_anyone: bool = False,
        owners: Sequence[Json] = (),
    ) -> bool:
        async def once() -> None:
            lease = await self._api.get(self._path)
            had = (lease.get("spec") or {}).get("holderIdentity")
            if not from_anyone and had != self._identity:
                raise UninstallError(
                    f"the Lease {leader_election.NAME} has another holder now: {had or 'none'}"
                )
            written = {
                "holderIdentity": self._identity if holder is None else holder,
                "leaseDurationSeconds": seconds,
                "renewTime": leader_election.micro_time(),
            }
            lease["spec"] = (lease.get("spec") or {}) | written
            if owners:
                lease["metadata"]["ownerReferences"] = list(owners)
            await self._api.replace(self._path, lease)

        for left in reversed(range(_TRIES)):
            try:
                await with_retries(once)
            except ApiError as error:
                if error.status == 404 and from_anyone:
                    return False
                if error.status != 409 or not left:  # the holder renews the Lease every few seconds
                    raise
            else:
                self._renewed = monotonic()
                return True
        raise AssertionError("unreachable")


async def with_retries(work: Callable[[], Awaitable[_T]]) -> _T:
    """Retry for up to half a minute while the API server is away or busy, or a continue token has
    expired.
    """
    for left in reversed(range(_TRIES)):
        try:
            return await work()
        except ApiError as error:
            if error.kind in ("refused", "conflict") or not left:
                raise
            await asyncio.sleep(error.retry_after or 2.0 ** (_TRIES - left - 1) / 2)
    raise AssertionError("unreachable")
