"""Everything that the operator knows, and what of it must be looked at again.

Watches feed this; it feeds `plan` and turns the answers into names in two queues: nodes to `compile` and limits to `aggregate`. It holds a
digest of each NodePinConfig's spec instead of the spec, and of each node's report what the aggregation reads. No I/O; for one thread.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from pinwarden.api.meta import Condition
from pinwarden.api.nodepinconfig import DenialReport, NodePinConfig
from pinwarden.api.pinlimit import PinLimitStatus
from pinwarden.controller.limits import SeenLimit
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.prune import AgentPod, Held, KnownNode
from pinwarden.controller.work import Bucket, WorkQueue
from pinwarden.plan.aggregate import Kept
from pinwarden.plan.compile import Settings
from pinwarden.plan.index import Dirty, World
from pinwarden.plan.report import NodeView
from pinwarden.plan.world import Namespace, Pod

# Reports of many nodes, and what a limit's edit makes of them, are looked at together.
COALESCE_SECONDS = 0.1
STATUS_BURST = 10
STATUSES_PER_SECOND = 1 / 5
_ENDED_PODS = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldSpec:
    """The spec of a NodePinConfig on the API server; of one that is gone the UID is empty."""

    uid: str
    generation: int
    digest: bytes


@dataclass(slots=True)
class ManagedLimit:
    """A limit, the status that the API server has of it, and what helps to make the next one."""

    seen: SeenLimit
    status: PinLimitStatus | None
    version: int
    kept: Kept = field(default_factory=Kept)
    leave: Bucket = field(default_factory=lambda: Bucket(STATUSES_PER_SECOND, STATUS_BURST))


class State:
    """What is known. `compile` and `aggregate` are the queues that it fills; `refused` is given the refusals that a node lists."""

    def __init__(
        self,
        settings: Settings,
        compile_queue: WorkQueue,
        aggregate_queue: WorkQueue,
        metrics: Metrics,
        refused: Callable[[str, Sequence[DenialReport]], None],
    ) -> None:
        self.world = World(settings)
        self.node_uids: dict[str, str] = {}
        self.held: dict[str, HeldSpec] = {}
        self.limits: dict[str, ManagedLimit] = {}
        self._compile = compile_queue
        self._aggregate = aggregate_queue
        self._metrics = metrics
        self._refused = refused
        self._ended: dict[tuple[str, str], Pod] = {}
        self._views: dict[str, NodeView] = {}
        self._agents: dict[str, AgentPod] = {}
        self._ready_agents: dict[str, int] = {}
        self._limit_keys: dict[str, str] = {}

    # -- pods, nodes, namespaces -----------------------------------------------------------------------------------

    def put_pod(self, pod: Pod) -> None:
        """A pod as it is."""
        if pod.terminal:
            self._end(pod)
        self._mark(self.world.put_pod(pod))

    def remove_pod(self, uid: str) -> None:
        """A pod is gone, has ended, or is not bound to a node."""
        if pod := self.world.pod(uid):
            self._end(pod)
        self._mark(self.world.remove_pod(uid))

    def pod_at(self, node: str, cgroup_uid: str) -> Pod | None:
        """The pod of the node whose cgroup bears this UID, or bore it until lately: what it was refused may be why it ended."""
        there = (pod for pod in self.world.pods_on(node) if pod.cgroup_uid == cgroup_uid)
        return next(there, None) or self._ended.get((node, cgroup_uid))

    def put_node(self, known: KnownNode) -> None:
        """A node as it is."""
        name = known.node.name
        if self.node_uids.get(name) != known.uid:
            self.node_uids[name] = known.uid
            self._compile.add(name)
        self._mark(self.world.put_node(known.node))

    def remove_node(self, name: str) -> None:
        """A node is gone; the garbage collector removes its NodePinConfig."""
        self.node_uids.pop(name, None)
        self._mark(self.world.remove_node(name))
        self._compile.add(name)

    def put_namespace(self, namespace: Namespace) -> None:
        """A namespace as it is."""
        self._mark(self.world.put_namespace(namespace))

    def remove_namespace(self, name: str) -> None:
        """A namespace is gone."""
        self._mark(self.world.remove_namespace(name))

    # -- agents and what they report -------------------------------------------------------------------------------

    def put_agent(self, agent: AgentPod) -> None:
        """An agent's pod as it is."""
        old = self._agents.get(agent.uid)
        if old != agent:
            self._agents[agent.uid] = agent
            self._count_agent(old, -1)
            self._count_agent(agent, 1)

    def remove_agent(self, uid: str) -> None:
        """An agent's pod is gone."""
        self._count_agent(self._agents.pop(uid, None), -1)

    def put_held(self, held: Held) -> None:
        """A NodePinConfig as the API server has it; one that is older than what is known tells nothing."""
        old = self.held.get(held.name)
        if old is not None and old.uid == held.uid and held.generation < old.generation:
            return
        if old is None or (old.uid, old.generation, old.digest) != (held.uid, held.generation, held.digest):
            self.held[held.name] = HeldSpec(held.uid, held.generation, held.digest)
            self._compile.add(held.name)
        self._read(held)

    def wrote_held(self, held: Held, before: HeldSpec | None) -> None:
        """A NodePinConfig as the API server answered the operator's own write, which was begun when `before` was known.

        When the watch told of the object meanwhile, it told of this write or will, perhaps of what came after it: the answer is dropped.
        """
        if self.held.get(held.name) is before:
            self.held[held.name] = HeldSpec(held.uid, held.generation, held.digest)
            if (
                before is None or held.generation > before.generation
            ):  # else the report may be older than the one known
                self._read(held)

    def remove_held(self, name: str) -> None:
        """A NodePinConfig is gone."""
        if name in self.held:
            self.held[name] = HeldSpec("", 0, b"")
            self._see(self.view(name).without_object())
            self._compile.add(name)

    def view(self, node: str) -> NodeView:
        """What is known of a node's agent."""
        return self._views.get(node) or NodeView(node, silent=not self._ready_agents.get(node))

    @property
    def views(self) -> Mapping[str, NodeView]:
        """By node; one that is missing is silent."""
        return self._views

    def desire(self, view: NodeView) -> None:
        """Take the view with the spec that was compiled; the limits concerned were marked by what made the node dirty."""
        if self._views.get(view.name) != view:
            self._views[view.name] = view

    def forget_node(self, name: str) -> None:
        """Drop what is kept of a node that is gone."""
        if name not in self.held or not self.held[name].uid:
            self.held.pop(name, None)
            self._views.pop(name, None)

    # -- limits ----------------------------------------------------------------------------------------------------

    def put_limit(self, seen: SeenLimit) -> None:
        """A limit as the API server has it; one that is older than what is known tells nothing."""
        key = seen.key
        old = self.limits.get(key)
        if old is not None and old.seen.uid == seen.uid:
            if seen.version < old.seen.version:
                return
            if (seen.generation, seen.limit is None) == (old.seen.generation, old.seen.limit is None):
                seen = replace(seen, limit=old.seen.limit)  # what is kept of it is good for this very object
            echo = seen.version <= old.version and seen.generation == old.seen.generation
            if seen.version > old.version:
                old.status, old.version = seen.status, seen.version
            old.seen = seen
            if echo:
                return
        else:
            if old is not None:
                self.remove_limit(key, old.seen.uid)
            self.limits[key] = ManagedLimit(seen, seen.status, seen.version)
            self._limit_keys[seen.uid] = key
        if seen.limit is None:
            self._metrics.unreadable("limits")
            self._mark(self.world.remove_limit(key))
        else:
            self._mark(self.world.put_limit(seen.limit))
        self._aggregate.add(key, COALESCE_SECONDS)

    def remove_limit(self, key: str, uid: str) -> None:
        """A limit is gone, unless there is another one of its name by now."""
        old = self.limits.get(key)
        if old is None or old.seen.uid != uid:
            return
        del self.limits[key], self._limit_keys[uid]
        self._mark(self.world.remove_limit(key))

    def forget_limit(self, uid: str) -> None:
        """The limit of this UID is gone."""
        if key := self._limit_keys.get(uid):
            self.remove_limit(key, uid)

    @property
    def limit_uids(self) -> list[str]:
        """The UIDs of the known limits."""
        return list(self._limit_keys)

    def limit_of(self, uid: str) -> SeenLimit | None:
        """The limit of this UID."""
        key = self._limit_keys.get(uid)
        return self.limits[key].seen if key else None

    def count(self, condition: str, status: str) -> int:
        """How many limits have the condition at this status."""
        return sum(
            any((each.type, each.status) == (condition, status) for each in conditions_of(entry.status))
            for entry in self.limits.values()
        )

    # -- marking ---------------------------------------------------------------------------------------------------

    def _mark(self, dirty: Dirty) -> None:
        for name in dirty.nodes:
            self._compile.add(name)
        for name in dirty.limits:
            self._aggregate.add(name, COALESCE_SECONDS)

    def _see(self, view: NodeView) -> None:
        """Take a view; a change concerns the limits of the node's pods."""
        if self._views.get(view.name) != view:
            self._views[view.name] = view
            self._mark(Dirty(limits=self.world.limits_on(view.name)))

    def _read(self, held: Held) -> None:
        view = self.view(held.name)
        try:
            config = NodePinConfig.model_validate({**held.config, "kind": "NodePinConfig"})
        except ValidationError as error:
            self._metrics.unreadable("nodepinconfigs")
            first = error.errors(include_url=False, include_input=False)[0]
            _log.warning(
                "NodePinConfig %s is not understood, at %s: %s", held.name, first["loc"], first["msg"]
            )
            self._see(view.without_object())
        else:
            self._see(view.with_object(config))
            self._refused(held.name, config.status.recent_denials if config.status else [])

    def _end(self, pod: Pod) -> None:
        self._ended[pod.node, pod.cgroup_uid] = pod
        if len(self._ended) > _ENDED_PODS:
            del self._ended[next(iter(self._ended))]

    def _count_agent(self, agent: AgentPod | None, change: int) -> None:
        if agent is None or not agent.ready or not agent.node:
            return
        count = self._ready_agents.get(agent.node, 0) + change
        self._ready_agents[agent.node] = count
        if not count:
            del self._ready_agents[agent.node]
        self._see(self.view(agent.node).with_silent(not count))


def conditions_of(status: PinLimitStatus | None) -> list[Condition]:
    """The conditions of a status, none where there is no status."""
    return status.conditions if status else []
