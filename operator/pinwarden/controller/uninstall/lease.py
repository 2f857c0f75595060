"""The operator's Lease in the hands of `pinwarden uninstall`: taken whoever has it, renewed while it works, given back where that fails.

Killed, it stops renewing, and a replica of the operator goes on. `LEFT_LEASE_SECONDS` is for the end, when the operator is about to go.
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
    """It was not done, and the operator puts back what was changed; the message is for people."""


class OperatorLease:
    """The operator's Lease, if there is one."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{leader_election.NAME}"
        self._identity = f"{leader_election.UNINSTALL}_{uuid.uuid4()}"
        self._held = False
        self._renewed = 0.0

    async def take(self) -> bool:
        """Takes it, whoever has it; whether there is one."""
        self._held = await self._replace(LEASE_SECONDS, from_anyone=True)
        return self._held

    async def renew(self) -> None:
        """Keeps it. Raises UninstallError when somebody else took it, so that two never write."""
        if self._held and monotonic() - self._renewed > LEASE_SECONDS / 10:
            await self._replace(LEASE_SECONDS)

    async def release(self) -> None:
        """Anybody may have it; where that cannot be said, it is free when it is not renewed any more."""
        if not self._held:
            return
        try:
            await self._replace(1, holder="")
        except (ApiError, UninstallError) as error:
            _log.error("the Lease is free in %d s: %s", LEASE_SECONDS, error)

    async def hand_over(self) -> bool:
        """It goes with the operator's Deployment; where there is none it is given back, and the answer is False."""
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
                    f"the Lease {leader_election.NAME} was taken by {had or 'nobody'} meanwhile"
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
                if error.status != 409 or not left:  # its holder renews it every few seconds
                    raise
            else:
                self._renewed = monotonic()
                return True
        raise AssertionError("unreachable")


async def with_retries(work: Callable[[], Awaitable[_T]]) -> _T:
    """Tries again, for up to half a minute, where the API server was away, too busy, or lost its place in a list."""
    for left in reversed(range(_TRIES)):
        try:
            return await work()
        except ApiError as error:
            if error.kind == "refused" or error.kind == "conflict" or not left:
                raise
            await asyncio.sleep(error.retry_after or 2.0 ** (_TRIES - left - 1) / 2)
    raise AssertionError("unreachable")
