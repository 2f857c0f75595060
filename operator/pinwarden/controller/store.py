"""Everything that the operator knows, and what of it must be looked at again.

Watches feed this; it feeds `plan` and turns the answers into names in two queues: nodes to `compile`, and limits and groups to
`aggregate`, by their keys. It holds a
digest of each NodePinConfig's spec instead of the spec, and of each node's report what the aggregation reads. No I/O; for one thread.
"""

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from time import monotonic

from pydantic import ValidationError

from pinwarden.api.nodepinconfig import DenialReport, NodePinConfig
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.controller.agent_liveness import AgentLiveness
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.metrics_counters import Rises
from pinwarden.controller.ratelimit import Bucket
from pinwarden.controller.resources import Seen, Status, applied_to, essence, group_key
from pinwarden.controller.transform import AgentPod, Held, HeldSpec, KnownNode
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.plan.cluster import Cluster, Dirty
from pinwarden.plan.group_compiler import FINALIZER, NOWHERE, Group
from pinwarden.plan.group_status import KeptGroupShares
from pinwarden.plan.limit_compiler import Settings
from pinwarden.plan.limit_status import Kept
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.types import Namespace, Pod

# Reports of many nodes, and what a limit's edit makes of them, are looked at together.
COALESCE_SECONDS = 0.1
STATUS_BURST = 20
STATUSES_PER_SECOND = 1 / 5
_ENDED_PODS = 4096
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Managed:
    """A limit or group, the status that the API server has of it, and what helps to make the next one.

    `held`: its finalizer is on it, or was and is about to be put back. `unapplied` is when this generation was first seen, by the monotonic
    clock; None once the status told that every node concerned has it.
    """

    seen: Seen
    status: Status | None
    version: int
    held: bool = False
    unapplied: float | None = None
    kept: Kept = field(default_factory=Kept)
    kept_group: KeptGroupShares = field(default_factory=KeptGroupShares)
    leave: Bucket = field(default_factory=lambda: Bucket(STATUSES_PER_SECOND, STATUS_BURST))


class State:
    """What is known. `compile` and `aggregate` are the queues that it fills; `refused` is given the refusals that a node lists.

    `unreadable` names the NodePinConfigs that this version cannot read.
    """

    def __init__(
        self,
        settings: Settings,
        compile_queue: WorkQueue,
        aggregate_queue: WorkQueue,
        metrics: Metrics,
        refused: Callable[[str, Sequence[DenialReport]], None],
    ) -> None:
        self.world = Cluster(settings)
        self.node_uids: dict[str, str] = {}
        self.held: dict[str, HeldSpec] = {}
        self.resources: dict[str, Managed] = {}
        self.rises = Rises(lambda uid: uid in self._keys)
        self.unreadable: set[str] = set()
        self._compile = compile_queue
        self._aggregate = aggregate_queue
        self._metrics = metrics
        self._refused = refused
        self._ended: dict[tuple[str, str], Pod] = {}
        self._going_on: dict[str, set[str]] = {}
        self._views: dict[str, NodeView] = {}
        self._agents = AgentLiveness()
        self._keys: dict[str, str] = {}

    # -- pods, nodes, namespaces -----------------------------------------------------------------------------------

    def put_pod(self, pod: Pod) -> None:
        """A pod as it is."""
        if pod.terminal:
            self._end(pod)
            self._leave(pod.uid)
            return
        self._going_on.get(pod.node, set()).discard(pod.uid)
        self._mark(self.world.put_pod(pod))
        self._forget_ended(pod.node, self.world.claimants(pod.node, pod.cgroup_uid))

    def remove_pod(self, uid: str) -> None:
        """A pod is gone, has ended, or is not bound to a node."""
        if pod := self.world.pod(uid):
            self._end(pod)
        self._leave(uid)

    def pod_at(self, node: str, cgroup_uid: str) -> Pod | None:
        """The pod of the node whose cgroup bears this UID, or bore it until lately: what it was refused may be why it ended.

        None where several pods name that cgroup.
        """
        own = self.world.pod(cgroup_uid)
        if own is not None and own.node == node:
            return own
        claimants = self.world.claimants(node, cgroup_uid)
        if len(claimants) > 1:
            return None
        return self.world.pod(*claimants) if claimants else self._ended.get((node, cgroup_uid))

    def put_node(self, known: KnownNode) -> None:
        """A node as it is."""
        name = known.node.name
        if self.node_uids.get(name) != known.uid:
            self.node_uids[name] = known.uid
            self._compile.add(name)
        if self._agents.put_node(name, lost=known.lost):
            self._hear(name)
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
        for node in self._agents.put_pod(agent):
            self._hear(node)

    def remove_agent(self, uid: str) -> None:
        """An agent's pod is gone."""
        for node in self._agents.remove_pod(uid):
            self._hear(node)

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
        self.unreadable.discard(name)
        if name in self.held:
            self.held[name] = HeldSpec("", 0, b"")
            self._see(self.view(name).without_object())
            self._compile.add(name)

    def lose_report(self, name: str) -> None:
        """What the agent of a node reports cannot be taken, so nothing is known of what it holds (H1)."""
        self._see(self.view(name).without_object())

    def view(self, node: str) -> NodeView:
        """What is known of a node's agent."""
        return self._views.get(node) or NodeView(node, silent=self._agents.silent(node))

    @property
    def views(self) -> Mapping[str, NodeView]:
        """By node; one that is missing is silent."""
        return self._views

    def desire(self, view: NodeView) -> None:
        """Take the view with the spec that was compiled; the limits concerned were marked by what made the node dirty."""
        before = self._views.get(view.name)
        if before is not None and before.not_compiled:
            self._see(view)
        elif before != view:
            self._views[view.name] = view
            self._tell_presence(view)

    def not_compiled(self, name: str, problem: str) -> None:
        """The spec of the node could not be compiled: the node keeps its last spec, and the limits on it say so."""
        self._see(replace(self.view(name), not_compiled=problem))

    def forget_node(self, name: str) -> None:
        """Drop what is kept of a node that is gone."""
        if name not in self.held or not self.held[name].uid:
            self.held.pop(name, None)
            self._views.pop(name, None)
            self._forget_ended(name)
            self._agents.forget_node(name)
            self.rises.forget_node(name)
            self._mark(self.world.put_presence(name, NOWHERE))

    # -- limits and groups -----------------------------------------------------------------------------------------

    def put(self, seen: Seen) -> None:
        """A limit or group as the API server has it; one that is older than what is known tells nothing."""
        key = seen.key
        old = self.resources.get(key)
        if old is not None and old.seen.uid == seen.uid:
            if seen.version < old.seen.version:
                return
            if (seen.generation, seen.resource is None) == (old.seen.generation, old.seen.resource is None):
                seen = replace(
                    seen, resource=old.seen.resource
                )  # what is kept of it is good for this very object
            echo = seen.version <= old.version and essence(seen) == essence(old.seen)
            if seen.version > old.version:
                old.status, old.version = seen.status, seen.version
            if seen.generation != old.seen.generation:
                old.unapplied = monotonic()
            if applied_to(seen.status, seen.generation):
                old.unapplied = None
            old.seen = seen
            if echo:
                return
        else:
            if old is not None:
                self.remove(key, old.seen.uid)
            unapplied = None if applied_to(seen.status, seen.generation) else monotonic()
            self.resources[key] = Managed(seen, seen.status, seen.version, unapplied=unapplied)
            self._keys[seen.uid] = key
        self._take(self.resources[key])
        self._aggregate.add(key, COALESCE_SECONDS)

    def answered(self, seen: Seen) -> None:
        """A limit or group as the API server answered the operator's own write, unless it is gone by now."""
        if seen.uid in self._keys:
            self.put(seen)

    def remove(self, key: str, uid: str) -> None:
        """A limit or group is gone, unless there is another one of its name by now."""
        old = self.resources.get(key)
        if old is None or old.seen.uid != uid:
            return
        del self.resources[key], self._keys[uid]
        self.rises.forget(uid)
        self._drop(old.seen)

    def forget(self, uid: str) -> None:
        """The limit or group of this UID is gone."""
        if key := self._keys.get(uid):
            self.remove(key, uid)

    @property
    def uids(self) -> list[str]:
        """The UIDs of the known limits and groups."""
        return list(self._keys)

    def seen_as(self, uid: str) -> Seen | None:
        """The limit or group of this UID."""
        key = self._keys.get(uid)
        return self.resources[key].seen if key else None

    def _take(self, entry: Managed) -> None:
        """Into the world, unless it cannot be read."""
        seen = entry.seen
        refused = self.world.group_rejection(seen.full_name) is not None
        entry.held = FINALIZER in seen.finalizers or (entry.held and not seen.deleting and not refused)
        if seen.resource is None:
            self._metrics.unreadable("groups" if seen.kind is SharedMemoryGroup else "limits")
            self._drop(seen)
        elif isinstance(seen.resource, SharedMemoryGroup):
            self._mark(self.world.put_group(Group(seen.resource, seen.created, seen.deleting, entry.held)))
        else:
            self._mark(self.world.put_limit(seen.resource))

    def _drop(self, seen: Seen) -> None:
        drop = self.world.remove_group if seen.kind is SharedMemoryGroup else self.world.remove_limit
        self._mark(drop(seen.full_name))

    # -- marking ---------------------------------------------------------------------------------------------------

    def _mark(self, dirty: Dirty) -> None:
        for name in dirty.nodes:
            self._compile.add(name)
        for name in dirty.limits:
            self._aggregate.add(name, COALESCE_SECONDS)
        for name in dirty.groups:
            self._aggregate.add(group_key(name), COALESCE_SECONDS)

    def _see(self, view: NodeView) -> None:
        """Take a view; a change concerns the limits of the node's pods, and the groups that are on the node."""
        if self._views.get(view.name) != view:
            self._views[view.name] = view
            self._tell_presence(view)
            name = view.name
            self._mark(Dirty(limits=self.world.limits_on(name), groups=self.world.groups_on(name)))
            self._forget_ended(name)

    def _tell_presence(self, view: NodeView) -> None:
        before = self.world.presence(view.name)
        self._mark(self.world.put_presence(view.name, view.presence(before)))

    def _read(self, held: Held) -> None:
        view = self.view(held.name)
        try:
            config = NodePinConfig.model_validate({**held.config, "kind": "NodePinConfig"})
        except ValidationError as error:
            self._metrics.unreadable("nodepinconfigs")
            self.unreadable.add(held.name)
            first = error.errors(include_url=False, include_input=False)[0]
            _log.warning(
                "NodePinConfig %s is not understood, at %s: %s", held.name, first["loc"], first["msg"]
            )
            self._see(view.without_object())
        else:
            self.unreadable.discard(held.name)
            view = view.with_object(config)
            self.rises.reported(view)
            self._see(view)
            self._refused(held.name, config.status.recent_denials if config.status else [])

    def _leave(self, uid: str) -> None:
        """A pod is gone or has ended. While processes of it go on, the rules keep it: limits hold until they do not select it any more.

        A node whose agent is silent is not waited for: its agent keeps such limits by itself.
        """
        pod = self.world.pod(uid)
        if pod is None or self.view(pod.node).silent or not self._goes_on(pod):
            self._mark(self.world.remove_pod(uid))
            return
        self._going_on.setdefault(pod.node, set()).add(uid)
        self._mark(self.world.put_pod(replace(pod, gone=True)))

    def _goes_on(self, pod: Pod) -> bool:
        """Whether the node's agent last reported processes of the pod, and no other pod has its cgroup.

        A mirror pod that was deleted comes again under another UID, and with the cgroup that it had.
        """
        use = self.view(pod.node).pods.get(pod.cgroup_uid)
        return use is not None and use.processes > 0 and not self._is_replaced(pod)

    def _is_replaced(self, pod: Pod) -> bool:
        """Return whether another pod has the cgroup now. A cgroup that bears the pod's own UID is never another's."""
        if pod.cgroup_uid == pod.uid:
            return False
        others = (self.world.pod(uid) for uid in self.world.claimants(pod.node, pod.cgroup_uid) - {pod.uid})
        return any(other is not None and not other.gone for other in others)

    def _forget_ended(self, node: str, only: Set[str] | None = None) -> None:
        """Remove the pods, or `only` these, that are gone and of which nothing goes on any more, as far as the node reports."""
        going_on = self._going_on.get(node)
        if going_on is None or (node in self._views and not self._views[node].reported):
            return
        for uid in list(going_on if only is None else going_on & only):
            pod = self.world.pod(uid)
            if pod is None or not self._goes_on(pod):
                going_on.discard(uid)
                self._mark(self.world.remove_pod(uid))
        if not going_on:
            del self._going_on[node]

    def _end(self, pod: Pod) -> None:
        for uid in pod.cgroup_uids:
            self._ended[pod.node, uid] = pod
        while len(self._ended) > _ENDED_PODS:
            del self._ended[next(iter(self._ended))]

    def _hear(self, node: str) -> None:
        self._see(self.view(node).with_silent(self._agents.silent(node)))
        if node not in self.node_uids and node not in self.held:
            self._compile.add(node)  # to be forgotten, unless the node is only told of after its agent
