"""Alerts about nodes and what runs on them. Three of them need the metrics of the agents, the others the operator's alone."""

from typing import Final

from monitoring.alerts.common import SEE_AGENT, SEE_NODES, problem
from monitoring.rules import Alert, Group

NODES: Final = Group(
    "nodes",
    "Nodes",
    (
        Alert(
            name="PinwardenAgentSilent",
            severity="warning",
            expr=problem("AgentSilent"),
            lasting="10m",
            summary="The agent is silent on {{ $value }} nodes that have pods to hold.",
            description="No pod of pinwarden's agent is ready on {{ $value }} nodes that shall hold limits or groups.",
            meaning="The agent is missing, not ready or being replaced there, or the node is lost: nobody hears of its kubelet.",
            impact="What was in force stays in force (H3), and pods that come are not held by the rlimit gate. Statuses say "
            "Unknown/AgentSilent.",
            diagnosis=f"{SEE_NODES}\n\n{SEE_AGENT}",
            mitigation="See why the pod is not there (taints: `agent.tolerations`; `agent.nodeSelector`) or not ready (its log).",
        ),
        Alert(
            name="PinwardenAgentFailing",
            severity="warning",
            expr="sum by (node, operation) (rate(pinwarden_agent_failures_total[10m])) > 0.05",
            lasting="5m",
            summary="The agent of {{ $labels.node }} fails at {{ $labels.operation }}.",
            description="{{ $value | humanize }} failures a second of {{ $labels.operation }} by the agent of {{ $labels.node }}.",
            meaning="`list` and `watch`: it does not hear what to hold. `status`: it is not heard. `remember`: it cannot keep its "
            "configuration on disk. `local`: a local file cannot be read.",
            impact="The node goes on with what it has. With `remember`, a restart while the API server is away would find an old "
            "configuration.",
            diagnosis=SEE_AGENT,
            mitigation="On one node alone: its network, its disk (`/var/lib/pinwarden`), its token. On many: the API server, or the "
            "admission policy `pinwarden-agent-own-node`, which lets an agent write the status of its own node only.",
        ),
        Alert(
            name="PinwardenSpecNotTaken",
            severity="critical",
            expr='(sum(pinwarden_operator_nodes_with_problem{problem="SpecNotTaken"}) > 0) or '
            "(sum(pinwarden_agent_configuration_problem) > 0)",
            lasting="5m",
            summary="{{ $value }} nodes keep an old configuration, because they do not understand the newest.",
            description="On {{ $value }} nodes the agent cannot read the newest spec of its NodePinConfig and keeps the last good one.",
            meaning="The operator or the CRDs are newer than the agent.",
            impact="New pods and edits are not held there, while everything held before stays.",
            diagnosis=f"{SEE_NODES}\n\n{SEE_AGENT}\n\n`status.unsupportedLimits` names the field.",
            mitigation="Bring agents to the operator's version: `kubectl -n pinwarden-system rollout status daemonset/pinwarden-agent`.",
        ),
        Alert(
            name="PinwardenReportTruncated",
            severity="info",
            expr=problem("Truncated"),
            lasting="15m",
            summary="The reports of {{ $value }} nodes are cut.",
            description="On {{ $value }} nodes a list of the status was cut at its longest length; figures of some pods and limits "
            "are lower bounds.",
            meaning="A status lists up to 4,096 pods, 1,024 limits, 32 overshoots and 1,024 pods in the fair view.",
            impact="Nothing is held less. Status, metrics and dashboards miss what was cut.",
            diagnosis=f"{SEE_NODES}\n\n```console\n$ kubectl get nodepinconfig NODE -o jsonpath='{{.status.truncated}}'\n```",
            mitigation="Mostly overshoots of more than 32 pairs of pod and limit: see PinwardenLimitExceeded and PinwardenOvershoot.",
        ),
        Alert(
            name="PinwardenNodeObserveOnly",
            severity="warning",
            expr=problem("ObserveOnly"),
            lasting="15m",
            summary="{{ $value }} nodes can only observe pods without the seccomp gate's profile.",
            description="On {{ $value }} nodes no source is held at better than Observe: the agent may not set limits of processes.",
            meaning="The rlimit gate needs CAP_SYS_RESOURCE in the initial user namespace; the agent found by trying that it has not.",
            impact="Limits refuse nothing there, but in pods with the seccomp gate's profile. Their status says so.",
            diagnosis=f"{SEE_NODES}\n\n```console\n$ kubectl -n pinwarden-system exec POD -c agent -- pinwarden probe\n```",
            mitigation="Give the agent's container what the chart gives it: an admission policy or a Pod Security level of the "
            "namespace may have "
            "taken capabilities away. Inside a user namespace (rootless or nested nodes) nothing helps.",
        ),
        Alert(
            name="PinwardenGateSilent",
            severity="critical",
            expr='max by (node) (time() - pinwarden_agent_heard_timestamp_seconds{process="gate"}) > 15',
            lasting="2m",
            summary="The seccomp gate of {{ $labels.node }} does not answer: pinning calls wait.",
            description="The seccomp gate of {{ $labels.node }} gave no sign of life for {{ $value | humanizeDuration }}.",
            meaning="The gate tells every 2 s that it lives, and does not. The holder keeps the descriptors of pods meanwhile.",
            impact="mlock and other gated calls in pods with the profile wait until a gate answers. Nothing that was held is lost.",
            diagnosis="```console\n$ kubectl -n pinwarden-system get pods -l app.kubernetes.io/component=agent -o wide\n"
            "$ kubectl -n pinwarden-system logs POD -c gate --previous --tail=50\n```",
            mitigation="Delete the agent's pod of the node: a new gate takes the descriptors over and answers what waits. Do not "
            "delete the holder. "
            "If it was turned off (`gate.enabled=false`) while pods had its profile, delete `/run/pinwarden/gate.json` on the node once "
            "none has.",
        ),
        Alert(
            name="PinwardenGateLost",
            severity="critical",
            expr=problem("GateLost"),
            lasting="0s",
            summary="On {{ $value }} nodes pods lost their gate: their pinning calls fail.",
            description="On {{ $value }} nodes the descriptors of a pod's seccomp gate are lost; its gated calls end with ENOSYS.",
            meaning="Holder and gate of the node ended together, and with them the descriptors of the pods' listeners.",
            impact="The pods can pin nothing more, and their containers must be started anew. What they have pinned stays.",
            diagnosis=f"{SEE_NODES}\n\n```console\n$ kubectl get nodepinconfig NODE -o jsonpath="
            '\'{range .status.pods[?(@.reason=="GateLost")]}{.uid}{"\\n"}{end}\'\n'
            "$ kubectl -n pinwarden-system get pods -l app.kubernetes.io/component=holder -o wide\n```",
            mitigation="Delete these pods, so that new ones start with a gate. Then see why the holder ended: it should live as long "
            "as the node.",
        ),
        Alert(
            name="PinwardenAccountantSilent",
            severity="warning",
            expr=problem("AccountantSilent"),
            lasting="5m",
            summary="Nobody accounts shared memory on {{ $value }} nodes.",
            description="On {{ $value }} nodes with groups of shared memory the accountant does not answer; figures are old.",
            meaning="The container `accountant` of the agent's pod has told nothing for 30 s, or never.",
            impact="Charge and borrow stand still, groups with `management: Create` are not made, and what drains goes on draining. "
            "The gate "
            "goes on refusing by the accountant's last findings.",
            diagnosis="```console\n$ kubectl -n pinwarden-system logs POD -c accountant --tail=50\n```",
            mitigation="`shared.enabled` must be true where groups are used. Else the log says what the kernel refused it.",
        ),
    ),
)
