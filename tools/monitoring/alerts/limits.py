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
            expr=f"({condition('limit', 'Accepted', 'False')}) or "
            f"({condition('group', 'Accepted', 'False')})",
            lasting="5m",
            summary=f"{{{{ if $labels.limit }}}}{WHICH_LIMIT}{{{{ else }}}}{WHICH_GROUP}"
            "{{ end }} is rejected.",
            description="Its condition Accepted is False; the message names the field and the fix.",
            meaning="The resource is invalid, is not allowed in its namespace, or asks for "
            "something that this release does not support.",
            impact="It applies to no pod. If it applied to pods before, they are released.",
            diagnosis=f"```console\n{UNACCEPTED}\n$ kubectl -n NAMESPACE describe pinlimit "
            "NAME\n```",
            mitigation="`NotSupported`: remove the field. `NotAllowed`: the message names the "
            "annotation that an administrator would set on the Namespace. `Invalid`: bring CRDs "
            "and operator to one version.",
        ),
        Alert(
            name="PinwardenLimitNotApplied",
            severity="warning",
            expr=condition("limit", "Applied", "True", "!="),
            lasting="15m",
            summary=f"{WHICH_LIMIT} has not reached every node.",
            description="For 15 minutes a node with a matching pod has not acknowledged the limit.",
            meaning="The condition Applied names the nodes: they are silent, late, or do not "
            "support the limit (`Unsupported`).",
            impact="Pods on these nodes keep the limit as it was before. If it is new, they have "
            "none.",
            diagnosis=READ_LIMIT,
            mitigation="`AgentSilent`: see PinwardenAgentSilent. `Unsupported`: the message says "
            "what the node cannot do. `NotCompiled`: see PinwardenObjectsUnreadable. "
            "`TooManyPods`: spread the pods over more nodes. `TooManyLimits`: merge limits.",
        ),
        Alert(
            name="PinwardenLimitNotEnforced",
            severity="warning",
            expr=not_enforced("limit"),
            lasting="15m",
            summary=f"{WHICH_LIMIT} is not enforced on every matching pod.",
            description="For 15 minutes a matching pod has been below its minimumLevel, or its "
            "level has been unknown.",
            meaning="The condition Enforced names pods and reasons (H1). This alert never includes "
            "limits in audit, or limits without a matching pod.",
            impact="These pods can pin more than the limit.",
            diagnosis=READ_LIMIT,
            mitigation="`CapIPCLock`, `CapSysResource`: remove the capability from the pod, or "
            "give the pod the seccomp gate's profile. `GateUnavailable`: see "
            "PinwardenNodeObserveOnly. `GateLost`: see PinwardenGateLost. `LevelTooLow`: the node "
            "cannot reach `minimumLevel`; lower it, or use the gate. See docs/enforcement.md.",
        ),
        Alert(
            name="PinwardenLimitExceeded",
            severity="warning",
            expr=condition("limit", "WithinLimit", "False"),
            lasting="15m",
            summary=f"Pods have pinned more than {WHICH_LIMIT} allows.",
            description="For 15 minutes a sample of a matching pod has been above the limit.",
            meaning="The limit was lowered below the use (nothing is evicted, P11), is in audit, "
            "or is not enforced.",
            impact="Where the limit is enforced, new pins are denied until use is below it. The "
            "memory stays pinned.",
            diagnosis=READ_LIMIT,
            mitigation="Restart the named pods, or raise the limit: `status.recommendation` would "
            "have been enough for the observed use.",
        ),
        Alert(
            name="PinwardenOvershoot",
            severity="info",
            expr=f"sum by ({LIMIT}) (increase(pinwarden_operator_limit_overshoots_total[15m])) > 0",
            lasting="0s",
            summary=f"Use exceeded {WHICH_LIMIT}.",
            description="In the last 15 minutes a pod's use rose above the limit.",
            meaning="Processes of a pod at level Converge raced for the rest of the limit, or the "
            "limit was lowered or is in audit. Figures are samples, so there may have been more "
            "overshoots.",
            impact="For a moment, or until it was unpinned, more memory was pinned than allowed. "
            "`status.overshoot` has peak and time, both lower bounds.",
            diagnosis=READ_LIMIT,
            mitigation="For an exact sum, give the pods the seccomp gate's profile. To exclude "
            "overshoots by a race, set `contention: Reserve`.",
        ),
        Alert(
            name="PinwardenDenialsHigh",
            severity="warning",
            expr=f"sum by ({LIMIT}) (rate(pinwarden_operator_limit_denials_total[5m])) > 1",
            lasting="10m",
            summary=f"{WHICH_LIMIT} denies pinning calls all the time.",
            description="{{ $value | humanize }} pinning calls a second have been denied for "
            "10 minutes.",
            meaning="One program retries again and again, or many programs are denied. Only "
            "denials by the seccomp gate are counted, not those by the kernel.",
            impact="The program may be slow, fall back (NCCL to TCP), or crash and restart.",
            diagnosis="```console\n$ kubectl -n NAMESPACE get events --field-selector "
            "reason=PinRefused\n"
            "$ kubectl -n NAMESPACE get pinlimit NAME -o jsonpath='{.status.topPods}'\n```\n\n"
            "An Event names the process, the requested amount and the used amount.",
            mitigation="Raise the limit (`status.recommendation` helps; running pods get it at "
            "once), or make the program request less.",
        ),
    ),
)
