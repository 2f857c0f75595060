"""Which containers get the gate, and with which policy. Pure.

A container is changed if the node's configuration governs its pod, or does not know the pod yet: a
new pod is created before the operator has compiled it. Five kinds of pods stay as they are:

- pods in the configuration without a limit or group;
- pods that the configuration does not know, of namespaces without a limit or group;
- pods of pinwarden itself: a gate cannot wait for its own answer;
- static pods without a limit. The kubelet starts the control plane with them, before any gate could
  answer. The kubelet sets their annotation, and overwrites this annotation in other pods;
- other pods without a limit, while no gate runs. A pod of the cluster's network would wait for the
  gate, and the gate's pod for the network.

If the node requires the gate, containers without a possible gate are rejected. The annotation
`Rules.toleration` exempts a pod.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pinwarden.api.reasons import RESTART_GATES
from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.nri import memlock
from pinwarden.node.nri.governed import NodePods
from pinwarden.node.nri.messages import Container, Pod
from pinwarden.node.seccomp.gated_calls import LISTENER_PATH
from pinwarden.node.seccomp.policy import Policy, UngateableError, gate

_SOURCE: Final = "kubernetes.io/config.source"
_API: Final = "api"
_NAME: Final = "app.kubernetes.io/name"
LABEL: Final = "pinwarden.io/gate"
_ZERO: Final = Limits(0, 0)
NO_GATE: Final = f"it was created while no gate ran; {RESTART_GATES}"
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
"""The values that containerd's validator reads as true (`strconv.ParseBool`)."""


class GateMode(StrEnum):
    """Which containers get the gate."""

    ALL = "All"
    GOVERNED = "Governed"
    LABELLED = "Labelled"


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy of a container with the gate, or None and the reason why it gets none.

    `wanted` is true if the container should have got the gate.
    """

    policy: Policy | None
    wanted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules besides the configuration: the mode, pinwarden's namespace, and the machine.

    `handlers` are the runtimes of RuntimeClasses that share the node's kernel and start containers
    as runc does. A sandbox with a kernel of its own (Kata, gVisor) cannot reach the gate.
    `inherited` is the RLIMIT_MEMLOCK of new containers without an adjustment. `toleration` is the
    key of the annotation with which a pod may start ungated. If empty, each container may.
    """

    mode: GateMode
    namespace: str
    machine: str
    handlers: frozenset[str] = frozenset()
    toleration: str = ""
    inherited: Limits = _ZERO

    def decide(
        self, pod: Pod, container: Container, node: NodePods, *, gate_runs: bool = True
    ) -> Decision:
        """Return the policy of a container that the runtime creates, with or without a gate."""
        if reason := self._excluded(pod, node):
            return Decision(None, wanted=False, reason=reason)
        own = container.policy
        if own is not None and own.listener_path == LISTENER_PATH:
            return Decision(None, wanted=False, reason="its own profile is one of pinwarden")
        if not self._shares_kernel(pod):
            reason = f"the runtime {pod.handler} of its RuntimeClass is not one for the gate"
            return Decision(None, wanted=True, reason=reason)
        if not gate_runs and pod.uid not in node.governed:
            return Decision(None, wanted=True, reason=NO_GATE)
        try:
            return Decision(gate(container.policy, self.machine), wanted=True)
        except UngateableError as error:
            return Decision(None, wanted=True, reason=str(error))

    def may_start_ungated(self, pod: Pod, container: Container) -> bool:
        """Return whether a container starts although it cannot get the gate.

        The keys and their order are those of containerd's validator.
        """
        if not self.toleration:
            return True
        for suffix in (f"/container.{container.name}", "/pod", ""):
            value = pod.annotations.get(self.toleration + suffix)
            if value is not None:
                return value in _TRUE
        return False

    def memlock(
        self, pod: Pod, container: Container, node: NodePods, *, gated: bool
    ) -> Limits | None:
        """Return the lowered RLIMIT_MEMLOCK of a new container, None if its limits stay.

        A container with limits of its own keeps them: the runtime rejects limits set twice. A gated
        container of an unknown pod keeps its inherited limits. Its pinning calls wait until the
        node knows the pod, and fitting calls must not be denied then (P5).
        """
        amount = node.smallest_limit(pod.uid, container.name)
        if (
            amount is None
            or container.memlock is not None
            or (gated and pod.uid not in node.listed)
            or self._excluded(pod, node)
            or not self._shares_kernel(pod)
        ):
            return None
        return memlock.lowered(self.inherited, amount)

    def _shares_kernel(self, pod: Pod) -> bool:
        return not pod.handler or pod.handler in self.handlers

    def _excluded(self, pod: Pod, node: NodePods) -> str:
        if node.release:
            return "the node is being released"
        if pod.namespace == self.namespace and pod.labels.get(_NAME) == "pinwarden":
            return "it is a pod of pinwarden"
        if pod.uid in node.governed:
            return ""
        if pod.annotations.get(_SOURCE, _API) != _API:
            return "it is a static pod without limits"
        if self.mode is GateMode.LABELLED and LABEL not in pod.labels:
            return f"its pod has no label {LABEL}"
        if self.mode is GateMode.GOVERNED:
            if pod.uid in node.listed:
                return "no limit selects its pod"
            if not node.may_limit(pod.namespace):
                return "no limit selects pods of its namespace"
        return ""
