"""`pinwarden uninstall`: undo pinwarden's changes on every node, before its programs are deleted.

The command takes the operator's Lease, so no replica writes meanwhile. On failure the command
releases the Lease, and the operator enforces the limits again. On success the operator's Deployment
owns the Lease, and both are deleted together.

Every node restores the original limits of each process (mode `Release`). Then nodes remove the
unused shared memory created by pinwarden. The command writes a spec again until the node has
applied the spec. At the timeout, a node without a running agent is reported and skipped. A node
whose agent runs and did not answer fails the command. While gated pods run, the command changes
nothing, because no gate would answer their calls.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from pinwarden.api.meta import GROUP, VERSION
from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.controller import leader_election
from pinwarden.controller.client import REQUEST_SECONDS, Api, ApiError, Json, configure, pages
from pinwarden.controller.finalizers import finalizer_removal
from pinwarden.controller.uninstall.blockers import (
    RemainingGroup,
    created_uids,
    draining,
    few,
    gated_pod,
    refusal,
    released,
    remaining_groups,
    reported_gated,
)
from pinwarden.controller.uninstall.lease import OperatorLease, UninstallError, with_retries
from pinwarden.plan.conditions import plural
from pinwarden.plan.decode import AGENT_SELECTOR, agents_by_node, is_lost, read_agent
from pinwarden.plan.group_compiler import FINALIZER

POLL_SECONDS = 1.0
LONGEST_POLL_SECONDS = 5.0
QUIET_SECONDS = leader_election.RENEW_SECONDS + REQUEST_SECONDS
"""The time after the takeover of the Lease in which a write of the operator may still arrive."""
_CHANGED_MEANWHILE = 5
_AT_ONCE = 32
_BATCH = 512
_PAGE = 500
_API = f"/apis/{GROUP}/{VERSION}"
_CONFIGS = f"{_API}/{NodePinConfig.plural}"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class GatedPods(StrEnum):
    """The behaviour while gated pods run."""

    REFUSE = "Refuse"
    BREAK = "Break"


@dataclass(frozen=True)
class UninstallOptions:
    """`namespace` is the operator's; `timeout` is in seconds, for all nodes together."""

    namespace: str
    timeout: float
    gated_pods: GatedPods


async def run(
    kubeconfig: Path | None, settings: UninstallOptions, say: Callable[[str], None]
) -> None:
    """Uninstall. Raises UninstallError, ConnectionSetupError, and ApiError."""
    async with Api(await configure(kubeconfig)) as api:
        work = asyncio.create_task(Uninstaller(api, settings, say).run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError as error:
            raise UninstallError("interrupted before the end") from error


class Uninstaller:
    """One run; `say` receives the messages for the user."""

    def __init__(self, api: Api, settings: UninstallOptions, say: Callable[[str], None]) -> None:
        self._api = api
        self._settings = settings
        self._say = say
        self._lease = OperatorLease(api, settings.namespace)

    async def run(self) -> None:
        """Uninstall. Raises UninstallError and ApiError."""
        await self._check_gated_pods()
        if not await self._lease.take():
            await self._check_never_used()
        try:
            started = monotonic()
            # Afterwards no replica begins a write.
            await asyncio.sleep(leader_election.RENEW_SECONDS)
            await self._release(started + QUIET_SECONDS, started + self._settings.timeout)
            # List the groups only now: a write in flight may still have set a finalizer.
            groups = await self._list(f"{_API}/{SharedMemoryGroup.plural}", lambda group: group)
            await self._check_gated_pods()
            half = 0.5 * self._settings.timeout
            if await self._drain(created_uids(groups), max(started + 3 * half, monotonic() + half)):
                await self._check_gated_pods()
            await self._run_all([partial(self._remove_finalizer, group) for group in groups])
            names = await self._list(_CONFIGS, lambda raw: str(raw["metadata"]["name"]))
            await self._run_all([partial(self._api.delete, f"{_CONFIGS}/{name}") for name in names])
            has_deployment = await self._lease.hand_over()
        except BaseException:
            await self._lease.release()
            raise
        self._say(
            f"released: {plural(len(names), 'NodePinConfig')} deleted, "
            f"finalizer removed from {plural(len(groups), 'SharedMemoryGroup')}"
        )
        if not has_deployment:
            self._say(
                f"there is no Deployment {leader_election.NAME} in the namespace "
                f"{self._settings.namespace}: if an operator runs elsewhere, stop that operator, "
                "because it enforces the limits again, and run this command again"
            )

    async def _check_never_used(self) -> None:
        """Raise UninstallError if an operator has written NodePinConfigs."""
        if await self._list(_CONFIGS, lambda raw: raw["metadata"]["name"]):
            raise UninstallError(
                f"there are NodePinConfigs and no Lease {leader_election.NAME} in the namespace "
                f"{self._settings.namespace}: name the operator's namespace (--namespace)"
            )

    async def _check_gated_pods(self) -> None:
        configs = await self._list(_CONFIGS, reported_gated)
        reported = frozenset(pod for pods in configs for pod in pods)
        pods = await self._list("/api/v1/pods", lambda raw: gated_pod(raw, reported))
        gated = [pod for pod in pods if pod]
        if not gated:
            return
        if self._settings.gated_pods is GatedPods.REFUSE:
            raise UninstallError(refusal(gated))
        names = few([pod.name for pod in gated])
        self._say(
            "pinning calls of these pods fail with ENOSYS from now on, and kubectl exec into them "
            f"fails: {names}"
        )

    async def _release(self, quiet: float, deadline: float) -> None:
        """Let nodes restore the limits of every process. Raises UninstallError."""

        unfinished = await self._apply_to_nodes(released, lambda _: (), deadline, quiet)
        if silent := [name for name, alive in unfinished.items() if alive]:
            raise UninstallError(
                f"these nodes did not restore the limits within {self._settings.timeout:.0f} s, "
                f"though their agents run: {few(silent)}. To see an agent's log: "
                f"kubectl -n {self._settings.namespace} logs ds/pinwarden-agent"
            )
        if unfinished:
            self._say(
                "no agent runs on these nodes, so their limits and shared memory stay until a "
                f"reboot: {', '.join(unfinished)}"
            )

    async def _drain(self, uids: frozenset[str], deadline: float) -> bool:
        """Let nodes remove the memory of these groups, and report the memory that stays.

        Return whether a node has such a group. Meanwhile the mode of these nodes is Active, so the
        NRI plugin gates new pods. Afterwards the mode is Release again.
        """
        left: dict[str, Sequence[RemainingGroup]] = {}

        def waits(config: NodePinConfig) -> Sequence[RemainingGroup]:
            left[config.metadata.name] = remaining = remaining_groups(config)
            return [group for group in remaining if not group.stays]

        await self._apply_to_nodes(lambda raw: draining(raw, uids), waits, deadline)
        for node, waited in sorted(left.items()):
            for wait in waited:
                self._say(f"shared memory stays on node {node}: {wait.group}: {wait.why}")
        if left:
            await self._apply_to_nodes(
                lambda raw: released(raw) if draining(raw, uids) else None,
                lambda _: (),
                monotonic() + 0.25 * self._settings.timeout,
            )
        return bool(left)

    async def _apply_to_nodes(
        self,
        wanted: Callable[[Json], Json | None],
        waits: Callable[[NodePinConfig], Collection[object]],
        deadline: float,
        quiet: float = 0.0,
    ) -> dict[str, bool]:
        """Write the `wanted` specs until every node has applied its spec and has no more `waits`.

        Continue at least until `quiet`. Return the unfinished nodes at the `deadline`, and whether
        an agent runs on each.
        """
        written: dict[str, int] = {}
        poll = POLL_SECONDS
        while True:
            await self._lease.renew()
            late = monotonic() >= max(deadline, quiet)
            agents = await self._agents()
            configs = await self._list(_CONFIGS, lambda raw: _read_config(raw, wanted, waits))
            reachable = [
                config
                for config in configs
                if config.spec is not None and (config.reported or config.name in agents)
            ]
            unfinished = {
                config.name: agents.get(config.name, False)
                for config in reachable
                if config.waits
                or not config.answered
                or config.generation != written.get(config.name)
            }
            if (not unfinished and monotonic() >= quiet) or late:
                return unfinished
            await self._run_all(
                [
                    partial(self._write, config, written)
                    for config in reachable
                    if config.generation != written.get(config.name)
                ]
            )
            await asyncio.sleep(poll)
            poll = min(poll * 1.5, LONGEST_POLL_SECONDS)

    async def _write(self, config: "_NodeConfig", written: dict[str, int]) -> None:
        """Write a spec, unless the object was deleted or recreated meanwhile."""
        patch: list[Json] = [
            {"op": "test", "path": "/metadata/uid", "value": config.uid},
            {"op": "replace", "path": "/spec", "value": config.spec},
        ]
        try:
            stored = await self._api.patch(f"{_CONFIGS}/{config.name}", patch)
        except ApiError as error:
            if error.status not in (404, 422):
                raise
        else:
            written[config.name] = stored["metadata"]["generation"]

    async def _agents(self) -> Mapping[str, bool]:
        """Return by node whether an agent is alive."""
        nodes = await self._list(
            "/api/v1/nodes", lambda raw: raw["metadata"]["name"] if is_lost(raw) else ""
        )
        path = f"/api/v1/namespaces/{self._settings.namespace}/pods"
        return agents_by_node(
            await self._list(path, read_agent, labelSelector=AGENT_SELECTOR), frozenset(nodes)
        )

    async def _remove_finalizer(self, group: Json) -> None:
        """Remove the finalizer, also of another manager. Raises ApiError."""
        metadata = group["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        path = f"{_API}/namespaces/{namespace}/{SharedMemoryGroup.plural}/{name}"
        for left in range(_CHANGED_MEANWHILE, -1, -1):
            if FINALIZER not in (metadata.get("finalizers") or ()):
                return
            try:
                await self._api.patch(
                    path, finalizer_removal(FINALIZER, metadata["uid"], metadata["finalizers"])
                )
            except ApiError as error:
                if error.status != 422 or not left:
                    raise
                metadata = (await self._api.get(path))["metadata"]
            else:
                return

    async def _run_all(self, works: Sequence[Callable[[], Awaitable[Any]]]) -> None:
        """Run all, some in parallel. Ignore deleted objects; raise the first other failure."""
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def run(work: Callable[[], Awaitable[Any]]) -> None:
            async with at_once:
                try:
                    await with_retries(work)
                except ApiError as error:
                    if error.status != 404:
                        raise

        for start in range(0, len(works), _BATCH):
            await self._lease.renew()
            done = await asyncio.gather(
                *(run(work) for work in works[start : start + _BATCH]), return_exceptions=True
            )
            for result in done:
                if isinstance(result, BaseException):
                    raise result

    async def _list(self, path: str, read: Callable[[Json], _T], **query: str) -> list[_T]:
        """Return what `read` returns for each object, nothing if the kind is not installed."""

        async def whole() -> list[_T]:
            values: list[_T] = []
            async for page in pages(self._api.get, path, _PAGE, **query):
                values += map(read, page["items"])
            return values

        try:
            return await with_retries(whole)
        except ApiError as error:
            if error.status != 404:
                raise
            return []


class _NodeConfig(NamedTuple):
    """A NodePinConfig with the wanted spec, and whether an agent `answered` this generation."""

    name: str
    uid: str
    generation: int
    reported: bool
    answered: bool
    spec: Json | None
    waits: Collection[object]


def _read_config(
    raw: Json,
    wanted: Callable[[Json], Json | None],
    waits: Callable[[NodePinConfig], Collection[object]],
) -> _NodeConfig:
    metadata, status = raw["metadata"], raw.get("status") or {}
    spec = wanted(raw)
    left: Collection[object] = ()
    if spec is not None:
        try:
            left = waits(NodePinConfig.model_validate(raw))
        except ValidationError as error:
            _log.warning("cannot read NodePinConfig %s: %s", metadata["name"], error)
            left = ["unreadable"]
    return _NodeConfig(
        metadata["name"],
        metadata["uid"],
        metadata["generation"],
        bool(status),
        status.get("observedGeneration") == metadata["generation"],
        spec,
        left,
    )
