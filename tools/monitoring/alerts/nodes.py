"""Alerts about nodes and their processes; three of them need the agents' metrics."""

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
            summary="The agent is silent on {{ $value }} nodes that have limits or groups.",
            description="No pod of pinwarden's agent is ready on {{ $value }} nodes that have "
            "limits or groups.",
            meaning="The agent is missing, not ready, or being replaced there. Or the node is "
            "lost: its kubelet does not report.",
            impact="Limits in force stay in force (H3), but the rlimit gate does not limit new "
            "pods. Statuses say Unknown/AgentSilent.",
            diagnosis=f"{SEE_NODES}\n\n{SEE_AGENT}",
            mitigation="Find out why the pod is missing (taints: `agent.tolerations`; "
            "`agent.nodeSelector`) or not ready (its log).",
        ),
        Alert(
            name="PinwardenAgentFailing",
            severity="warning",
            expr="sum by (node, operation) (rate(pinwarden_agent_failures_total[10m])) > 0.05",
            lasting="5m",
            summary="The agent of {{ $labels.node }} fails at {{ $labels.operation }}.",
            description="{{ $value | humanize }} failures a second of {{ $labels.operation }} by "
            "the agent of {{ $labels.node }}.",
            meaning="`list` and `watch`: it cannot read its configuration. `status`: it cannot "
            "write its report. `remember`: it cannot save its configuration on disk. `local`: it "
            "cannot read a local file.",
            impact="The node keeps its configuration. With `remember`, a restart while the API "
            "server is unreachable would load an old configuration.",
            diagnosis=SEE_AGENT,
            mitigation="On one node alone: its network, its disk (`/var/lib/pinwarden`), its "
            "token. On many nodes: the API server, or the admission policy "
            "`pinwarden-agent-own-node`. The policy lets an agent write the status of its own node "
            "only.",
        ),
        Alert(
            name="PinwardenSpecNotTaken",
            severity="critical",
            expr='(sum(pinwarden_operator_nodes_with_problem{problem="SpecNotTaken"}) > 0) or '
            "(sum(pinwarden_agent_configuration_problem) > 0)",
            lasting="5m",
            summary="{{ $value }} nodes cannot read the newest configuration and keep an old one.",
            description="On {{ $value }} nodes the agent cannot read the newest spec of its "
            "NodePinConfig and keeps the last good spec.",
            meaning="The operator or the CRDs are newer than the agent.",
            impact="New pods and edits have no effect there. Limits in force stay in force.",
            diagnosis=f"{SEE_NODES}\n\n{SEE_AGENT}\n\n`status.unsupportedLimits` names the field.",
            mitigation="Bring agents to the operator's version: "
            "`kubectl -n pinwarden-system rollout status daemonset/pinwarden-agent`.",
        ),
        Alert(
            name="PinwardenReportTruncated",
            severity="info",
            expr=problem("Truncated"),
            lasting="15m",
            summary="The reports of {{ $value }} nodes are truncated.",
            description="On {{ $value }} nodes a list of the status was truncated; figures of some "
            "pods and limits are lower bounds.",
            meaning="A status lists up to 4,096 pods, 1,024 limits, 32 overshoots and 1,024 pods "
            "in the fair view.",
            impact="Enforcement does not change. Status, metrics and dashboards lack the rest.",
            diagnosis=f"{SEE_NODES}\n\n```console\n"
            "$ kubectl get nodepinconfig NODE -o jsonpath='{.status.truncated}'\n```",
            mitigation="The usual cause is overshoots of more than 32 pairs of pod and limit: see "
            "PinwardenLimitExceeded and PinwardenOvershoot.",
        ),
        Alert(
            name="PinwardenNodeObserveOnly",
            severity="warning",
            expr=problem("ObserveOnly"),
            lasting="15m",
            summary="{{ $value }} nodes can only observe pods without the seccomp gate's profile.",
            description="On {{ $value }} nodes no source is above level Observe: the agent may not "
            "set limits of processes.",
            meaning="The rlimit gate needs `CAP_SYS_RESOURCE` in the initial user namespace. The "
            "agent tried to set a limit and failed.",
            impact="Limits deny nothing there, except in pods with the seccomp gate's profile. "
            "Their status says so.",
            diagnosis=f"{SEE_NODES}\n\n```console\n"
            "$ kubectl -n pinwarden-system exec POD -c agent -- pinwarden probe\n```",
            mitigation="Give the agent's container the capabilities that the chart sets. An "
            "admission policy or a Pod Security level of the namespace may have removed them. "
            "Inside a user namespace (rootless or nested nodes) there is no fix.",
        ),
        Alert(
            name="PinwardenGateSilent",
            severity="critical",
            expr='max by (node) (time() - pinwarden_agent_heard_timestamp_seconds{process="gate"}) '
            "> 15",
            lasting="2m",
            summary="The seccomp gate of {{ $labels.node }} does not answer: pinning calls wait.",
            description="The seccomp gate of {{ $labels.node }} gave no sign of life for "
            "{{ $value | humanizeDuration }}.",
            meaning="The gate writes a sign of life every 2 s, and it stopped. Meanwhile the "
            "holder keeps the descriptors of pods.",
            impact="In gated pods, `mlock` and other gated calls wait until a gate "
            "answers. All limits stay in force.",
            diagnosis="```console\n"
            "$ kubectl -n pinwarden-system get pods -l app.kubernetes.io/component=agent -o wide\n"
            "$ kubectl -n pinwarden-system logs POD -c gate --previous --tail=50\n```",
            mitigation="Delete the agent's pod of the node: a new gate takes over the descriptors "
            "and answers the waiting calls. Do not delete the holder. If the gate was disabled "
            "(`gate.enabled=false`) while gated pods ran, wait until none of these pods runs. "
            "Then delete `/run/pinwarden/gate.json` on the node.",
        ),
        Alert(
            name="PinwardenGateLost",
            severity="critical",
            expr=problem("GateLost"),
            lasting="0s",
            summary="On {{ $value }} nodes pods lost their gate: their pinning calls fail.",
            description="On {{ $value }} nodes the descriptors of a pod's seccomp gate are lost; "
            "its gated calls fail with ENOSYS.",
            meaning="Holder and gate of the node ended at the same time. The descriptors of the "
            "pods' listeners ended with them.",
            impact="The pods can pin nothing more, and must be recreated. Their pinned memory "
            "stays pinned.",
            diagnosis=f"{SEE_NODES}\n\n```console\n$ kubectl get nodepinconfig NODE -o jsonpath="
            '\'{range .status.pods[?(@.reason=="GateLost")]}{.uid}{"\\n"}{end}\'\n'
            "$ kubectl -n pinwarden-system get pods -l app.kubernetes.io/component=holder -o "
            "wide\n```",
            mitigation="Delete these pods; new pods start with a gate. Then find out why the "
            "holder ended: it should live as long as the node.",
        ),
        Alert(
            name="PinwardenAccountantSilent",
            severity="warning",
            expr=problem("AccountantSilent"),
            lasting="5m",
            summary="The accountant of shared memory is silent on {{ $value }} nodes.",
            description="On {{ $value }} nodes with groups of shared memory the accountant does "
            "not answer; figures are old.",
            meaning="The container `accountant` of the agent's pod has not reported for 30 s, or "
            "never.",
            impact="Charge and borrow do not change, groups with `management: Create` are not "
            "created, and draining groups keep draining. The gate denies by the accountant's last "
            "report.",
            diagnosis="```console\n$ kubectl -n pinwarden-system logs POD -c accountant "
            "--tail=50\n```",
            mitigation="`shared.enabled` must be true where groups are used. Otherwise the log "
            "says what the kernel denied.",
        ),
    ),
)
