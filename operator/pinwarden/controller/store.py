"""The operator's knowledge of the cluster, and the names to process again.

Reflectors and kopf fill the store. The store updates `plan`'s Cluster and adds dirty names to three
queues: nodes to `compile`, nodes that can wait to `slow_compile_queue`, and keys of limits and
groups to `aggregate`. The store keeps a digest of each NodePinConfig's spec instead of the spec,
and the fields of each node's report for the aggregation. No I/O; for one thread.
"""

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

from pydantic import ValidationError

from pinwarden.api.meta import describe_error
from pinwarden.api.nodepinconfig import DenialReport, NodePinConfig
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.controller.agent_liveness import AgentLiveness
from pinwarden.controller.managed_resource import ManagedResource
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.metrics_counters import ReportCounters
from pinwarden.controller.resources import ObservedResource, group_key
from pinwarden.controller.transform import AgentPod, KnownNode, StoredConfig, StoredSpec
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.plan.cluster import Cluster
from pinwarden.plan.dirty import Dirty
from pinwarden.plan.group_compiler import FINALIZER, NOWHERE, Group
from pinwarden.plan.limit_compiler import LimitSettings
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.types import Namespace, Pod

# Reports of many nodes that follow one edit are aggregated together.
COALESCE_SECONDS = 0.1
_ENDED_PODS = 4096
_log = logging.getLogger(__name__)


class Store:
    """The known objects.

    `denial_listeners` receive the reported denials. `unreadable` names the NodePinConfigs with an
    unreadable spec or status.
    """

    def __init__(
        self,
        settings: LimitSettings,
        compile_queue: WorkQueue,
        aggregate_queue: WorkQueue,
        metrics: Metrics,
    ) -> None:
        self.cluster = Cluster(settings)
        self.node_uids: dict[str, str] = {}
        self.stored: dict[str, StoredSpec] = {}
        self.resources: dict[str, ManagedResource] = {}
        self.counters = ReportCounters(lambda uid: uid in self._keys)
        self.unreadable: set[str] = set()
        self._compile = compile_queue
        self._aggregate = aggregate_queue
        self._metrics = metrics
        self.slow_compile_queue = WorkQueue()
        self.denial_listeners: list[Callable[[str, Sequence[DenialReport]], None]] = []
        self._ended: dict[tuple[str, str], Pod] = {}
        self._still_running: dict[str, set[str]] = {}
        self._views: dict[str, NodeView] = {}
        self._agents = AgentLiveness()
        self._keys: dict[str, str] = {}

    # -- pods, nodes, namespaces ---------------------------------------------------------------

    def put_pod(self, pod: Pod) -> None:
        """Store a pod, or end a terminated pod."""
        if pod.terminal:
            self._remember_ended(pod)
            self._end_pod(pod.uid)
            return
        self._still_running.get(pod.node, set()).discard(pod.uid)
        self._mark(self.cluster.put_pod(pod))
        self._remove_stopped(pod.node, self.cluster.claimants(pod.node, pod.cgroup_uid))

    def remove_pod(self, uid: str) -> None:
        """Remove a pod: it was deleted, has ended, or is not bound to a node."""
        if pod := self.cluster.pod(uid):
            self._remember_ended(pod)
        self._end_pod(uid)

    def pod_at(self, node: str, cgroup_uid: str) -> Pod | None:
        """Return the pod of this cgroup, None if several pods claim the cgroup.

        The pod may have ended recently: a denial may be the reason of its end.
        """
        own = self.cluster.pod(cgroup_uid)
        if own is not None and own.node == node:
            return own
        claimants = self.cluster.claimants(node, cgroup_uid)
        if len(claimants) > 1:
            return None
        return self.cluster.pod(*claimants) if claimants else self._ended.get((node, cgroup_uid))

    def put_node(self, known: KnownNode) -> None:
        """Store a node."""
        name = known.node.name
        if self.node_uids.get(name) != known.uid:
            self.node_uids[name] = known.uid
            self._compile.add(name)
        if self._agents.put_node(name, lost=known.lost):
            self._update_liveness(name)
        self._mark(self.cluster.put_node(known.node))

    def remove_node(self, name: str) -> None:
        """Remove a node; the garbage collector deletes its NodePinConfig."""
        self.node_uids.pop(name, None)
        self._mark(self.cluster.remove_node(name))
        self._compile.add(name)

    def put_namespace(self, namespace: Namespace) -> None:
        """Store a namespace."""
        self._mark(self.cluster.put_namespace(namespace))

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace."""
        self._mark(self.cluster.remove_namespace(name))

    # -- agents and their reports --------------------------------------------------------------

    def put_agent(self, agent: AgentPod) -> None:
        """Store a pod of an agent."""
        for node in self._agents.put_pod(agent):
            self._update_liveness(node)

    def remove_agent(self, uid: str) -> None:
        """Remove a pod of an agent."""
        for node in self._agents.remove_pod(uid):
            self._update_liveness(node)

    def put_config(self, config: StoredConfig) -> None:
        """Store an observed NodePinConfig, unless a newer generation is known."""
        old = self.stored.get(config.name)
        if old is not None and old.uid == config.uid and config.generation < old.generation:
            return
        if old is None or (old.uid, old.generation, old.digest) != (
            config.uid,
            config.generation,
            config.digest,
        ):
            self.stored[config.name] = StoredSpec(config.uid, config.generation, config.digest)
            self._compile.add(config.name)
        self._read_config(config)

    def config_written(self, config: StoredConfig, before: StoredSpec | None) -> None:
        """Store the answer to the operator's own write; `before` was stored when the write began.

        Drop the answer if the watch delivered this write or a later state meanwhile.
        """
        if self.stored.get(config.name) is before:
            self.stored[config.name] = StoredSpec(config.uid, config.generation, config.digest)
            # With an unchanged generation, the report may be older than the known report.
            if before is None or config.generation > before.generation:
                self._read_config(config)

    def remove_config(self, name: str) -> None:
        """Remove a deleted NodePinConfig."""
        self.unreadable.discard(name)
        if name in self.stored:
            self.stored[name] = StoredSpec("", 0, b"")
            self._update_view(self.view(name).without_object())
            self._compile.add(name)

    def forget_report(self, name: str) -> None:
        """Forget an unreadable report: the state of the node is unknown (H1)."""
        self._update_view(self.view(name).without_object())

    def view(self, node: str) -> NodeView:
        """Return the view of a node, an empty view if nothing is known."""
        return self._views.get(node) or NodeView(node, silent=self._agents.is_silent(node))

    @property
    def views(self) -> Mapping[str, NodeView]:
        """Return the views by node; a node without a view is silent."""
        return self._views

    def set_desired(self, view: NodeView) -> None:
        """Store the view with the compiled spec; the limits of the node are already dirty."""
        before = self._views.get(view.name)
        if before is not None and before.not_compiled:
            self._update_view(view)
        elif before != view:
            self._views[view.name] = view
            self._update_presence(view)

    def compile_failed(self, name: str, problem: str) -> None:
        """Record a failed compilation: the node keeps its last spec, and its limits report this."""
        self._update_view(replace(self.view(name), not_compiled=problem))

    def forget_node(self, name: str) -> None:
        """Forget a deleted node."""
        if name not in self.stored or not self.stored[name].uid:
            self.stored.pop(name, None)
            self._views.pop(name, None)
            self._remove_stopped(name)
            self._agents.forget_node(name)
            self.counters.forget_node(name)
            self._mark(self.cluster.put_presence(name, NOWHERE))

    # -- limits and groups ---------------------------------------------------------------------

    def put_resource(self, observed: ObservedResource) -> None:
        """Store an observed limit or group, unless a newer version is known."""
        key = observed.key
        entry = self.resources.get(key)
        if entry is not None and entry.observed.uid == observed.uid:
            if not entry.update(observed):
                return
        else:
            if entry is not None:
                self.remove_resource(key, entry.observed.uid)
            entry = self.resources[key] = ManagedResource.of(observed)
            self._keys[observed.uid] = key
        self._add_to_cluster(entry)
        self._aggregate.add(key, COALESCE_SECONDS)

    def resource_written(self, observed: ObservedResource) -> None:
        """Store the answer to the operator's own write, unless the object was deleted meanwhile."""
        if observed.uid in self._keys:
            self.put_resource(observed)

    def remove_resource(self, key: str, uid: str) -> None:
        """Remove a limit or group, unless a newer object has its name."""
        old = self.resources.get(key)
        if old is None or old.observed.uid != uid:
            return
        del self.resources[key], self._keys[uid]
        self.counters.forget(uid)
        self._drop_from_cluster(old.observed)

    def remove_uid(self, uid: str) -> None:
        """Remove the limit or group with this UID."""
        if key := self._keys.get(uid):
            self.remove_resource(key, uid)

    @property
    def uids(self) -> list[str]:
        """Return the UIDs of the known limits and groups."""
        return list(self._keys)

    def resource_of(self, uid: str) -> ObservedResource | None:
        """Return the limit or group with this UID."""
        key = self._keys.get(uid)
        return self.resources[key].observed if key else None

    def _add_to_cluster(self, entry: ManagedResource) -> None:
        """Add a resource to the cluster, or drop an unreadable resource."""
        observed = entry.observed
        rejected = self.cluster.group_rejection(observed.full_name) is not None
        entry.has_finalizer = FINALIZER in observed.finalizers or (
            entry.has_finalizer and not observed.deleting and not rejected
        )
        if observed.resource is None:
            self._metrics.unreadable("groups" if observed.kind is SharedMemoryGroup else "limits")
            self._drop_from_cluster(observed)
        elif isinstance(observed.resource, SharedMemoryGroup):
            group = Group(
                observed.resource, observed.created, observed.deleting, entry.has_finalizer
            )
            self._mark(self.cluster.put_group(group))
        else:
            self._mark(self.cluster.put_limit(observed.resource))

    def _drop_from_cluster(self, observed: ObservedResource) -> None:
        if observed.kind is SharedMemoryGroup:
            self._mark(self.cluster.remove_group(observed.full_name))
        else:
            self._mark(self.cluster.remove_limit(observed.full_name))

    # -- marking -------------------------------------------------------------------------------

    def _mark(self, dirty: Dirty) -> None:
        for name in dirty.nodes:
            self._compile.add(name)
        for name in self.cluster.nodes if dirty.all_nodes else ():
            self.slow_compile_queue.add(name)
        for name in dirty.limits:
            self._aggregate.add(name, COALESCE_SECONDS)
        for name in dirty.groups:
            self._aggregate.add(group_key(name), COALESCE_SECONDS)

    def _update_view(self, view: NodeView) -> None:
        """Store a view; after a change, mark the limits and groups of the node as dirty."""
        if self._views.get(view.name) != view:
            self._views[view.name] = view
            self._update_presence(view)
            limits, groups = self.cluster.limits_on(view.name), self.cluster.groups_on(view.name)
            self._mark(Dirty(limits=limits, groups=groups))
            self._remove_stopped(view.name)

    def _update_presence(self, view: NodeView) -> None:
        before = self.cluster.presence(view.name)
        self._mark(self.cluster.put_presence(view.name, view.presence(before)))

    def _read_config(self, stored: StoredConfig) -> None:
        view = self.view(stored.name)
        try:
            config = NodePinConfig.model_validate({**stored.config, "kind": "NodePinConfig"})
        except ValidationError as error:
            self._metrics.unreadable("nodepinconfigs")
            self.unreadable.add(stored.name)
            _log.warning(
                "cannot read NodePinConfig %s, ignoring its report: %s",
                stored.name,
                describe_error(error),
            )
            self._update_view(view.without_object())
        else:
            self.unreadable.discard(stored.name)
            view = view.with_object(config)
            self.counters.observe(view)
            self._update_view(view)
            for listener in self.denial_listeners:
                listener(stored.name, config.status.recent_denials if config.status else [])

    def _end_pod(self, uid: str) -> None:
        """Remove a deleted or ended pod, but only after its processes.

        Do not wait for a silent agent, which keeps the limits of such processes by itself.
        """
        pod = self.cluster.pod(uid)
        if pod is None or self.view(pod.node).silent or not self._has_processes(pod):
            self._mark(self.cluster.remove_pod(uid))
            return
        self._still_running.setdefault(pod.node, set()).add(uid)
        self._mark(self.cluster.put_pod(replace(pod, gone=True)))

    def _has_processes(self, pod: Pod) -> bool:
        """Return whether the agent reports processes of the pod, and no other pod has its cgroup.

        A deleted mirror pod is recreated with another UID and the same cgroup.
        """
        use = self.view(pod.node).pods.get(pod.cgroup_uid)
        return use is not None and use.processes > 0 and not self._is_replaced(pod)

    def _is_replaced(self, pod: Pod) -> bool:
        """Return whether another pod has the cgroup now, unless the pod's own UID names it."""
        if pod.cgroup_uid == pod.uid:
            return False
        others = (
            self.cluster.pod(uid)
            for uid in self.cluster.claimants(pod.node, pod.cgroup_uid) - {pod.uid}
        )
        return any(other is not None and not other.gone for other in others)

    def _remove_stopped(self, node: str, only: Set[str] | None = None) -> None:
        """Remove deleted pods without reported processes, among all or `only` these UIDs."""
        still_running = self._still_running.get(node)
        if still_running is None or (node in self._views and not self._views[node].reported):
            return
        for uid in list(still_running if only is None else still_running & only):
            pod = self.cluster.pod(uid)
            if pod is None or not self._has_processes(pod):
                still_running.discard(uid)
                self._mark(self.cluster.remove_pod(uid))
        if not still_running:
            del self._still_running[node]

    def _remember_ended(self, pod: Pod) -> None:
        for uid in pod.cgroup_uids:
            self._ended[pod.node, uid] = pod
        while len(self._ended) > _ENDED_PODS:
            del self._ended[next(iter(self._ended))]

    def _update_liveness(self, node: str) -> None:
        self._update_view(self.view(node).with_silent(self._agents.is_silent(node)))
        if node not in self.node_uids and node not in self.stored:
            # Forgets the node, unless its Node object arrives after its agent.
            self._compile.add(node)
