"""The evidence about a pod, and the conclusions of the operator's own rules.

An explanation must not interpret the rules a second time. So `Case` calls the functions of the
operator: `compile_node` for the spec of the node, `NodeView` for its acknowledgements, and
`summarize_limit` for the level of the pod.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from pinwarden import SYSTEM_NAMESPACE
from pinwarden.api.nodepinconfig import Mode, NodeLimit, NodePinConfig, NodePinConfigSpec, PodReport
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.explain.findings import DeniedCall
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.limit_compiler import (
    Limit,
    LimitSet,
    LimitSettings,
    limit_name,
    matches,
    rejection,
)
from pinwarden.plan.limit_on_node import LimitOnNode, acknowledges, summarize_limit
from pinwarden.plan.node_spec import MAX_NODE_LIMITS, MAX_NODE_PODS, Overflow, compile_node
from pinwarden.plan.node_view import NodeView, PodSample
from pinwarden.plan.types import Namespace, Node, Pod
from pinwarden.plan.usage import is_stale


@dataclass(frozen=True, slots=True)
class NodeAgent:
    """The agent on the pod's node: the name of its pod, and whether it is alive."""

    pod: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """The objects of the API server about a pod.

    `limits` are the PinLimits of its namespace and all ClusterPinLimits. `unreadable` are limits of
    another version by name, each with the problem. `node`, `config` and `agent` are None if the
    Node, its NodePinConfig or its agent does not exist. `workload` is as in
    `owners.workload_of`. `events` are earlier denials. `system` is pinwarden's own namespace.
    """

    pod: Pod
    now: datetime
    namespace: Namespace
    node: Node | None
    config: NodePinConfig | None
    agent: NodeAgent | None
    limits: Sequence[Limit] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    events: Sequence[DeniedCall] = ()
    workload: str = ""
    system: str = SYSTEM_NAMESPACE

    @property
    def settings(self) -> LimitSettings:
        """The settings of the operator that matter here."""
        return LimitSettings(exempt=frozenset({"kube-system", self.system}))


class Case:
    """Evidence, and the conclusions of the rules."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.pod = evidence.pod

    @property
    def windows(self) -> bool:
        """Whether the pod is for Windows, as its spec or its node says."""
        return self.pod.windows or (self.evidence.node is not None and self.evidence.node.windows)

    @cached_property
    def selecting(self) -> Sequence[Limit]:
        """The limits whose selectors match the pod, also rejected limits, by name."""
        pod, settings = self.pod, self.evidence.settings
        node = self.evidence.node or Node(pod.node)
        limits = (
            limit
            for limit in self.evidence.limits
            if matches(limit, pod, self.evidence.namespace, node, settings)
        )
        return sorted(limits, key=limit_name)

    @cached_property
    def rejected(self) -> Mapping[str, Rejection]:
        """The rejected limits of `selecting` by name."""
        rejections = ((limit_name(limit), rejection(limit)) for limit in self.selecting)
        return {name: why for name, why in rejections if why is not None}

    @cached_property
    def matching(self) -> Sequence[Limit]:
        """The accepted limits that match the pod, enforced or not."""
        return [limit for limit in self.selecting if limit_name(limit) not in self.rejected]

    @cached_property
    def view(self) -> NodeView:
        """The operator's view of the pod's node, with the limits of this pod only."""
        pod, evidence = self.pod, self.evidence
        node = evidence.node or Node(pod.node)
        spaces = {evidence.namespace.name: evidence.namespace}
        desired = compile_node(node, [pod], spaces, evidence.limits, evidence.settings)
        stored = evidence.config.spec if evidence.config else NodePinConfigSpec()
        full = len(stored.limits) >= MAX_NODE_LIMITS
        missing = {pod.cgroup_uid} if len(stored.pods) >= MAX_NODE_PODS else set[str]()
        unlisted = missing - {entry.uid for entry in stored.pods}
        if full:
            names = {limit.name for limit in stored.limits}
            desired = desired.model_copy(
                update={"limits": [limit for limit in desired.limits if limit.name in names]}
            )
        view = NodeView(pod.node).with_desired(desired, Overflow(full, frozenset(unlisted)))
        if evidence.config is not None:
            hashes = {group.uid: group.hash for group in stored.groups}
            view = replace(view.with_object(evidence.config), requested_groups=hashes)
        return view.with_silent(evidence.agent is None or not evidence.agent.ready or self.stale)

    @property
    def stale(self) -> bool:
        """Whether the node's report is older than any report of a live agent."""
        status = self.evidence.config.status if self.evidence.config else None
        return status is not None and is_stale(status.sampled_at, self.evidence.now)

    @property
    def released(self) -> bool:
        """Whether the node has mode Release."""
        config = self.evidence.config
        return config is not None and config.spec.mode is Mode.RELEASE

    @cached_property
    def acknowledged(self) -> frozenset[str]:
        """The limits, by name, whose current version the agent acknowledged for this pod (H1)."""
        if self.released:
            return frozenset()
        return frozenset(
            limit_name(limit)
            for limit in self.matching
            if acknowledges(self.view, self.pod, limit.metadata.uid or "")
        )

    def acknowledges(self, limit: Limit) -> bool:
        """Return whether the agent acknowledged the limit for this pod."""
        return limit_name(limit) in self.acknowledged

    @cached_property
    def shares(self) -> Mapping[str, LimitOnNode]:
        """The share of the node in each matching limit by name, for this pod only."""
        return {
            limit_name(limit): summarize_limit(limit, [self.pod], self.view)
            for limit in self.matching
        }

    @cached_property
    def limit_set(self) -> LimitSet:
        """The constraints that the node should enforce on the pod."""
        return LimitSet.of(self.matching)

    @cached_property
    def stored(self) -> Mapping[str, NodeLimit]:
        """The constraints of the pod in the NodePinConfig by name."""
        config = self.evidence.config
        if config is None:
            return {}
        names = {
            name
            for pod in config.spec.pods
            if pod.uid == self.pod.cgroup_uid
            for name in pod.limits
        }
        return {limit.name: limit for limit in config.spec.limits if limit.name in names}

    @property
    def use(self) -> PodSample | None:
        """The sample of the pod in the agent's report."""
        return self.view.pods.get(self.pod.cgroup_uid)

    @cached_property
    def report(self) -> PodReport | None:
        """The agent's report of the pod."""
        status = self.evidence.config.status if self.evidence.config else None
        reports = (pod for pod in (status.pods if status else ()) if pod.uid == self.pod.cgroup_uid)
        return next(reports, None)
