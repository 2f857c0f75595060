"""`pinwarden uninstall`: undoes on every node what pinwarden did, before the programs that could are taken away.

It takes the operator's Lease, so that no replica writes meanwhile, and gives it back when it fails: then the operator puts everything back
in force. Else the Lease stays taken and goes with the operator's Deployment, which owns it from then on.

Nodes first drain the shared memory that pinwarden made, as far as nobody uses it, and then give every process back what it had (mode
Release). Each is asked again as long as what it holds is not that, and none is waited for in vain: one whose agent does not run by the end
of the time is named and given up, one whose agent runs and does not answer fails the whole. Nothing is changed before it is known that no
gated pod would be left with calls that nobody answers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import ValidationError

from pinwarden.api.meta import GROUP, VERSION
from pinwarden.api.nodepinconfig import Mode, NodePinConfig
from pinwarden.api.sharedmemorygroup import DeletionPolicy, Management, Phase, SharedMemoryGroup
from pinwarden.controller import leader, prune
from pinwarden.controller.client import Api, ApiError, Json, configure, pages
from pinwarden.controller.finalizers import FIELD_MANAGER
from pinwarden.plan.groups import FINALIZER

PROFILES = "pinwarden/"
POLL_SECONDS = 1.0
LEASE_SECONDS = 3600
_AGENT_LABELS = "app.kubernetes.io/name=pinwarden,app.kubernetes.io/component=agent"
_AT_ONCE = 32
_PAGE = 500
_TRIES = 10
_NAMED = 20
_STAYS = ("InUse", "NotRemoved")
_API = f"/apis/{GROUP}/{VERSION}"
_CONFIGS = f"{_API}/{NodePinConfig.plural}"
_log = logging.getLogger(__name__)


class GatedPods(StrEnum):
    """What to do while pods with the gate's profile run."""

    REFUSE = "Refuse"
    BREAK = "Break"


class UninstallError(Exception):
    """It was not done, and everything is as before; the message is for people."""


@dataclass(frozen=True)
class Settings:
    """`namespace` is the operator's. `timeout` in seconds, for what all nodes are waited for together."""

    namespace: str
    timeout: float
    gated_pods: GatedPods


async def run(kubeconfig: Path | None, settings: Settings, say: Callable[[str], None]) -> None:
    """All of it. Raises UninstallError, ConnectionSetupError, and ApiError when the API server does not do its part."""
    async with Api(await configure(kubeconfig)) as api:
        await Uninstall(api, settings, say).run()


class Uninstall:
    """One run; `say` takes what people shall read. `poll_seconds` apart it looks at what nodes answer."""

    def __init__(
        self, api: Api, settings: Settings, say: Callable[[str], None], poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._api = api
        self._settings = settings
        self._say = say
        self._poll_seconds = poll_seconds
        self._lease = _Lease(api, settings.namespace)

    async def run(self) -> None:
        """All of it. Raises UninstallError, and ApiError when the API server does not do its part."""
        await self._look_at_gated_pods()
        await self._lease.seize()
        try:
            await asyncio.sleep(leader.RENEW_SECONDS)  # by then no replica begins a write
            started = monotonic()
            groups = [each async for each in self._list(f"{_API}/{SharedMemoryGroup.plural}")]
            await self._drain(_made(groups), started + self._settings.timeout / 2)
            await self._release(started + self._settings.timeout)
        except BaseException:
            await self._lease.give_back()
            raise
        await self._each(self._let_go(each) for each in groups)
        names = [each["metadata"]["name"] async for each in self._list(_CONFIGS)]
        await self._each(self._api.delete(f"{_CONFIGS}/{name}") for name in names)
        await self._lease.leave()
        self._say(
            f"released: {len(names)} NodePinConfigs are deleted, {len(groups)} SharedMemoryGroups have no finalizer"
        )

    async def _look_at_gated_pods(self) -> None:
        gated = [_name(pod) async for pod in self._list("/api/v1/pods") if _is_gated(pod)]
        if not gated:
            return
        listed = ", ".join(gated[:_NAMED]) + (
            f" and {len(gated) - _NAMED} more" if len(gated) > _NAMED else ""
        )
        if self._settings.gated_pods is GatedPods.BREAK:
            self._say(f"pinning calls of these pods fail with ENOSYS from now on: {listed}")
            return
        raise UninstallError(
            f"{len(gated)} pods have the gate's seccomp profile, and their pinning calls would fail with ENOSYS without the gate: {listed}."
            " Remove the label pinwarden.io/gate from their namespaces, or the profile from their manifests, and make these pods anew;"
            " or set uninstall.gatedPods=Break (--gated-pods=Break)."
        )

    async def _drain(self, made: frozenset[str], deadline: float) -> None:
        """Has nodes take away the shared memory that pinwarden made; what is in use stays, and is told."""
        left: dict[str, list[str]] = {}

        def drained(config: NodePinConfig) -> bool:
            waits = list(_undrained(config))
            left[config.metadata.name] = [f"{name}: {why}" for name, why, _ in waits]
            return all(stays for _, _, stays in waits)

        for name in await self._reach(deadline, lambda config: _draining(config, made), drained):
            left.setdefault(name, ["it is not known what is left"])
        for node, waits in sorted(left.items()):
            for wait in waits:
                self._say(f"shared memory stays on node {node}: {wait}")

    async def _release(self, deadline: float) -> None:
        """Has nodes give every process back what it had. Raises UninstallError when one could and did not."""
        missing = await self._reach(deadline, lambda _: {"mode": Mode.RELEASE.value}, lambda _: True)
        agents = await self._agents()
        if silent := [name for name in missing if agents.get(name)]:
            raise UninstallError(
                f"these nodes did not do what they were asked to within {self._settings.timeout:.0f} s, though their agents run: "
                f"{', '.join(silent[:_NAMED])}. What an agent says: kubectl -n {self._settings.namespace} logs ds/pinwarden-agent"
            )
        if missing:
            self._say(
                f"no agent runs on these nodes, so what they hold stays until they are rebooted: {', '.join(missing)}"
            )

    async def _reach(
        self, deadline: float, wanted: Callable[[Json], Json | None], reached: Callable[[NodePinConfig], bool]
    ) -> list[str]:
        """Has every node hold the spec that it is `wanted` to, if any, until it is `reached`; where it is not, at the deadline."""
        asked: dict[str, tuple[Json, int]] = {}
        while True:
            agents = await self._agents()
            missing: list[str] = []
            async for raw in self._list(_CONFIGS):
                name = raw["metadata"]["name"]
                if "status" not in raw and name not in agents:
                    continue  # there never was an agent
                spec, generation = asked.get(name) or (wanted(raw), None)
                if spec is None:
                    continue
                if raw["metadata"]["generation"] != generation:
                    raw |= await self._write(raw, spec)
                    asked[name] = (spec, raw["metadata"]["generation"])
                if not _answered(raw, reached):
                    missing.append(name)
            if not missing or monotonic() >= deadline:
                return missing
            await asyncio.sleep(self._poll_seconds)

    async def _write(self, raw: Json, spec: Json) -> Json:
        """What became of it."""
        name = raw["metadata"]["name"]
        owners = raw["metadata"].get("ownerReferences") or []
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": NodePinConfig.__name__,
            "metadata": {"name": name, "ownerReferences": owners},
            "spec": spec,
        }
        return await self._api.apply(f"{_CONFIGS}/{name}", body)

    async def _agents(self) -> Mapping[str, bool]:
        """Whether an agent is ready, by node."""
        path = f"/api/v1/namespaces/{self._settings.namespace}/pods"
        found: dict[str, bool] = {}
        async for raw in self._list(path, labelSelector=_AGENT_LABELS):
            _, agent = prune.agent_pod(raw)
            found[agent.node] = found.get(agent.node, False) or agent.ready
        return found

    async def _let_go(self, group: Json) -> None:
        """Takes the finalizer away: nobody is left who would."""
        if FINALIZER not in (group["metadata"].get("finalizers") or ()):
            return
        metadata = {key: group["metadata"][key] for key in ("namespace", "name", "uid")}
        path = f"{_API}/namespaces/{metadata['namespace']}/{SharedMemoryGroup.plural}/{metadata['name']}"
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": SharedMemoryGroup.__name__,
            "metadata": metadata,
        }
        await self._api.apply(path, body, FIELD_MANAGER)

    async def _each(self, works: Iterable[Awaitable[Any]]) -> None:
        """All, some at once; what is gone already is well."""

        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(work: Awaitable[Any]) -> None:
            async with at_once:
                try:
                    await work
                except ApiError as error:
                    if error.status != 404:
                        raise

        await asyncio.gather(*(one(work) for work in works))

    async def _list(self, path: str, **query: str) -> AsyncIterator[Json]:
        async for page in pages(self._api.get, path, _PAGE, **query):
            for item in page["items"]:
                yield item


class _Lease:
    """The operator's Lease, if there is one."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{leader.NAME}"

    async def seize(self) -> None:
        """Takes it, whoever has it, for longer than all of this can last."""
        await self._write({"holderIdentity": "pinwarden-uninstall", "leaseDurationSeconds": LEASE_SECONDS})

    async def give_back(self) -> None:
        """Anybody may have it."""
        try:
            await self._write({"holderIdentity": "", "leaseDurationSeconds": 1})
        except ApiError as error:
            _log.error(
                "the Lease %s stays taken for up to %d s, delete it: %s", self._path, LEASE_SECONDS, error
            )

    async def leave(self) -> None:
        """It goes with the operator's Deployment."""
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{leader.NAME}"
        try:
            deployment = await self._api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return
        owner = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": leader.NAME,
            "uid": deployment["metadata"]["uid"],
        }
        await self._write({}, [owner])

    async def _write(self, spec: Json, owners: list[Json] | None = None) -> None:
        for left in reversed(range(_TRIES)):
            try:
                lease = await self._api.get(self._path)
                lease["spec"] = (lease.get("spec") or {}) | spec | {"renewTime": leader.micro_time()}
                if owners is not None:
                    lease["metadata"]["ownerReferences"] = owners
                await self._api.replace(self._path, lease)
            except ApiError as error:
                if error.status == 404:
                    return
                if error.status != 409 or not left:  # its holder renews it every few seconds
                    raise
            else:
                return


def _is_gated(pod: Json) -> bool:
    """Whether a container of a pod that is not over has a profile of pinwarden's."""
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    spec = pod["spec"]
    parts = ("containers", "initContainers", "ephemeralContainers")
    contexts = [spec.get("securityContext")] + [
        each.get("securityContext") for part in parts for each in spec.get(part) or ()
    ]
    profiles = (((each or {}).get("seccompProfile") or {}).get("localhostProfile") or "" for each in contexts)
    return any(profile.startswith(PROFILES) for profile in profiles)


def _name(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _made(groups: Iterable[Json]) -> frozenset[str]:
    """UIDs of the groups whose objects pinwarden made and shall take away."""
    orphan = DeletionPolicy.ORPHAN.value
    return frozenset(
        each["metadata"]["uid"]
        for each in groups
        if each["spec"].get("management") == Management.CREATE.value
        and each["spec"].get("deletionPolicy") != orphan
    )


def _draining(config: Json, made: frozenset[str]) -> Json | None:
    """The spec of a node with these groups draining; None where it has none of them."""
    spec: Json = config.get("spec") or {}
    groups: list[Json] = spec.get("groups") or []
    if made.isdisjoint(each.get("uid") for each in groups):
        return None
    return {
        **spec,
        "groups": [{**each, "draining": True} if each.get("uid") in made else each for each in groups],
    }


def _answered(raw: Json, reached: Callable[[NodePinConfig], bool]) -> bool:
    """Whether the node's agent took the spec that is stored, and it is `reached`."""
    try:
        config = NodePinConfig.model_validate(raw)
    except ValidationError as error:
        _log.warning("NodePinConfig %s cannot be read: %s", raw["metadata"]["name"], error)
        return False
    status = config.status
    answered = status is not None and status.observed_generation == raw["metadata"]["generation"]
    return answered and reached(config)


def _undrained(config: NodePinConfig) -> Iterable[tuple[str, str, bool]]:
    """Draining groups that are not released on a node: the name, why, and whether waiting is no use."""
    reports = {each.uid: each for each in config.status.groups} if config.status else {}
    for group in config.spec.groups:
        report = reports.get(group.uid)
        if not group.draining or (report and report.hash == group.hash and report.phase is Phase.RELEASED):
            continue
        known = report is not None and report.hash == group.hash
        why = (report.message or report.reason) if report else "the node does not report it"
        yield group.name, why, bool(known and report and report.reason in _STAYS)
