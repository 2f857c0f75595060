"""Alerts about PinLimits and ClusterPinLimits."""

from typing import Final

from monitoring.alerts.common import (
    LIMIT,
    READ_LIMIT,
    UNACCEPTED,
    WHICH_GROUP,
    WHICH_LIMIT,
    condition,
    not_enforced,
)
from monitoring.rules import Alert, Group

LIMITS: Final = Group(
    "limits",
    "Limits",
    (
        Alert(
            name="PinwardenNotAccepted",
            severity="warning",
            expr=f"({condition('limit', 'Accepted', 'False')}) or ({condition('group', 'Accepted', 'False')})",
            lasting="5m",
            summary=f"{{{{ if $labels.limit }}}}{WHICH_LIMIT}{{{{ else }}}}{WHICH_GROUP}{{{{ end }}}} is not acted on.",
            description="Its condition Accepted is False; the message of the condition names the field and what to do.",
            meaning="The resource asks for something that this release does not have, that is not allowed to its namespace, or that "
            "is invalid.",
            impact="It holds for no pod, and what it held before is released.",
            diagnosis=f"```console\n{UNACCEPTED}\n$ kubectl -n NAMESPACE describe pinlimit NAME\n```",
            mitigation="`NotSupported`: leave the field out. `NotAllowed`: the message has the annotation that an administrator "
            "would put on the "
            "Namespace. `Invalid`: bring CRDs and operator to one version.",
        ),
        Alert(
            name="PinwardenLimitNotApplied",
            severity="warning",
            expr=condition("limit", "Applied", "True", "!="),
            lasting="15m",
            summary=f"{WHICH_LIMIT} has not reached every node.",
            description="For 15 minutes a node with a matching pod has not acknowledged the limit.",
            meaning="The condition Applied names the nodes: they are silent, late, or do not take it (`Unsupported`).",
            impact="Pods on these nodes are held to the limit as it was before, or not at all if it is new.",
            diagnosis=READ_LIMIT,
            mitigation="`AgentSilent`: see PinwardenAgentSilent. `Unsupported`: the message says what the node cannot do. "
            "`NotCompiled`: see PinwardenObjectsUnreadable. `TooManyPods`: spread the pods over more nodes. `TooManyLimits`: "
            "merge limits.",
        ),
        Alert(
            name="PinwardenLimitNotEnforced",
            severity="warning",
            expr=not_enforced("limit"),
            lasting="15m",
            summary=f"{WHICH_LIMIT} is not enforced on every matching pod.",
            description="For 15 minutes a matching pod has not been held, or has not been known to be held, at the minimumLevel "
            "asked for.",
            meaning="The condition Enforced names pods and reasons (H1). Limits in audit, and limits that no pod matches, are never in "
            "this alert.",
            impact="These pods can pin more than the limit.",
            diagnosis=READ_LIMIT,
            mitigation="`CapIPCLock`, `CapSysResource`: take the capability from the pod, or give it the seccomp gate's profile. "
            "`GateUnavailable`: see PinwardenNodeObserveOnly. `GateLost`: see PinwardenGateLost. `LevelTooLow`: the node reaches "
            "less than "
            "`minimumLevel`; lower it, or use the gate. See docs/enforcement.md.",
        ),
        Alert(
            name="PinwardenLimitExceeded",
            severity="warning",
            expr=condition("limit", "WithinLimit", "False"),
            lasting="15m",
            summary=f"Pods have pinned more than {WHICH_LIMIT} allows.",
            description="For 15 minutes a matching pod has been seen above the limit.",
            meaning="The limit was lowered below what is in use (nothing is evicted, P11), is in audit, or is not enforced.",
            impact="New pins are refused where it is enforced, until use falls below. The memory stays pinned.",
            diagnosis=READ_LIMIT,
            mitigation="Restart the pods that are named, or raise the limit: `status.recommendation` is what the observed use would "
            "have fitted in.",
        ),
        Alert(
            name="PinwardenOvershoot",
            severity="info",
            expr=f"sum by ({LIMIT}) (increase(pinwarden_operator_limit_overshoots_total[15m])) > 0",
            lasting="0s",
            summary=f"Use passed {WHICH_LIMIT}.",
            description="In the last 15 minutes a pod's use was seen above the limit that was at or under it before.",
            meaning="Processes of a pod at level Converge raced for what was left, or the limit was lowered, or is in audit. "
            "Sampled: there may "
            "have been more.",
            impact="For a moment, or until it is released, more was pinned than allowed. `status.overshoot` has peak and time, both "
            "lower bounds.",
            diagnosis=READ_LIMIT,
            mitigation="Where the sum must hold exactly, give the pods the seccomp gate's profile; where no process may overshoot, "
            "`contention: Reserve`.",
        ),
        Alert(
            name="PinwardenDenialsHigh",
            severity="warning",
            expr=f"sum by ({LIMIT}) (rate(pinwarden_operator_limit_denials_total[5m])) > 1",
            lasting="10m",
            summary=f"Pods are refused memory by {WHICH_LIMIT} all the time.",
            description="{{ $value | humanize }} pinning calls a second have been refused for 10 minutes.",
            meaning="A program tries again and again, or many do. Only refusals by the seccomp gate are seen, not the kernel's own.",
            impact="The program may be slow, fall back (NCCL to TCP), or crash and start again.",
            diagnosis="```console\n$ kubectl -n NAMESPACE get events --field-selector reason=PinRefused\n"
            "$ kubectl -n NAMESPACE get pinlimit NAME -o jsonpath='{.status.topPods}'\n```\n\nAn Event says who asked for how much, "
            "and what was used.",
            mitigation="Raise the limit (it holds live, `status.recommendation` helps), or make the program ask for less.",
        ),
    ),
)
