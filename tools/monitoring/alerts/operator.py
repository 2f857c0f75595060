"""Alerts about the operator itself."""

from typing import Final

from monitoring.alerts.common import SEE_OPERATOR, STAYS, UNACCEPTED
from monitoring.rules import Alert, Group

OPERATOR: Final = Group(
    "operator",
    "The operator",
    (
        Alert(
            name="PinwardenOperatorDown",
            severity="critical",
            expr='absent(up{job="pinwarden-operator"} == 1)',
            lasting="5m",
            summary="No replica of the operator answers.",
            description="Prometheus has reached no replica of pinwarden's operator for 5 minutes.",
            meaning="No replica of the operator answers a scrape, or Prometheus does not know the "
            "address.",
            impact="New pods and edits of limits reach no node, and statuses do not change. "
            f"{STAYS}",
            diagnosis=SEE_OPERATOR,
            mitigation="Find out why its pods do not run (image, quota, nodes). If they run, check "
            "that Prometheus may reach port 8080: `networkPolicy.enabled`, and the labels of the "
            "ServiceMonitor or PodMonitor.",
        ),
        Alert(
            name="PinwardenOperatorNoLeader",
            severity="critical",
            expr="sum(pinwarden_operator_leader) == 0",
            lasting="2m",
            summary="No replica of the operator may write.",
            description="Replicas of pinwarden's operator run, but none has held the Lease for "
            "2 minutes.",
            meaning="A replica writes only while it holds the Lease `pinwarden-operator`. No "
            "replica holds it: the API server is unreachable, or rejects the request.",
            impact="As if no operator runs, and its metrics lack the figures of the cluster. "
            f"{STAYS}",
            diagnosis=SEE_OPERATOR,
            mitigation="The log says why no replica gets the Lease. Restore the API server, or the "
            "operator's rights on Leases in its namespace (`helm upgrade` restores them).",
        ),
        Alert(
            name="PinwardenOperatorNotSynced",
            severity="warning",
            expr="min(pinwarden_operator_synced) == 0",
            lasting="5m",
            summary="A replica of the operator could not list everything.",
            description="A replica of pinwarden's operator has not listed all objects for 5 "
            "minutes; until then it writes nothing.",
            meaning="A replica writes nothing until it has listed everything. With a partial list "
            "it would release limits that it does not know yet.",
            impact="This replica cannot take over. If it holds the Lease, nothing is written.",
            diagnosis=SEE_OPERATOR
            + "\n\n`/readyz` of the replica names the missing lists:\n\n```console\n"
            "$ kubectl -n pinwarden-system port-forward POD 8080   # POD is the replica's\n"
            "$ curl -s localhost:8080/readyz                       # in another terminal\n```",
            mitigation="Install the CRDs of this version (`kubectl apply --server-side "
            "--force-conflicts --field-manager=helm -f charts/pinwarden/crds/`), and check that "
            "the operator's ClusterRole is from this version.",
        ),
        Alert(
            name="PinwardenWritesFail",
            severity="warning",
            expr="sum by (kind, result) "
            '(rate(pinwarden_operator_writes_total{result!~"written|conflict"}[15m])) > 0.01',
            lasting="10m",
            summary="The operator's writes of {{ $labels.kind }} fail: {{ $labels.result }}.",
            description="{{ $value | humanize }} writes a second of {{ $labels.kind }} have ended "
            "as {{ $labels.result }} for 10 minutes.",
            meaning="`throttled`: the API server's priority and fairness (429). `refused`: a right "
            "or a schema. `server` and `unreachable`: the API server itself. A conflict is no "
            "failure: another writer was faster, and the operator retries.",
            impact="`spec`: new pods and edits do not reach nodes. `status`, `event`: users see "
            "old statuses and no Events. `finalizer`: groups stay.",
            diagnosis=SEE_OPERATOR,
            mitigation="`refused`: install the CRDs and the chart of one version. `throttled`: "
            "find the client that floods the API server. The operator itself writes at most 150 "
            "times a second and waits as long as the API server demands.",
        ),
        Alert(
            name="PinwardenApplySlow",
            severity="warning",
            expr="histogram_quantile(0.9, sum by (le) "
            "(rate(pinwarden_operator_apply_seconds_bucket[15m]))) > 10",
            lasting="5m",
            summary="Edits of limits take long to reach the nodes.",
            description="One edit in ten took more than {{ $value | humanizeDuration }} until all "
            "of its nodes had acknowledged it.",
            meaning="The time begins when the operator sees a new generation of a limit or group. "
            "It ends when the status says that all of its nodes have it. A second is usual. Edits "
            "that never reach a node are not counted: see PinwardenLimitNotApplied.",
            impact="New and edited limits take effect late. Until then, pods without the seccomp "
            "gate's profile run without them.",
            diagnosis="The dashboard *Pinwarden / Cluster*, row *Operator*, shows the slowest "
            "step: queues, writes, throttling. One slow node delays every limit with a pod "
            "there:\n\n"
            "```console\n$ kubectl get nodepinconfigs -o custom-columns="
            "'NODE:.metadata.name,WANTED:.metadata.generation,HAS:.status.observedGeneration'\n```",
            mitigation="If nodes lag, look at their agents (restarts, CPU limits). If writes are "
            "throttled, see PinwardenWritesFail.",
        ),
        Alert(
            name="PinwardenObjectsUnreadable",
            severity="warning",
            expr="sum by (resource) (pinwarden_operator_unreadable_objects) > 0 or max by "
            "(resource) (label_replace(pinwarden_operator_items_failing, "
            '"resource", "$1", "loop", "(.+)")) > 0',
            lasting="5m",
            summary="The operator cannot read {{ $value }} {{ $labels.resource }}.",
            description="Pinwarden's operator has not been able to read {{ $value }} "
            "{{ $labels.resource }} for 5 minutes: the CRDs have another version, or the operator "
            "has a defect.",
            meaning="An object has a field or a value that this version of the operator does not "
            "know. Instead of a kind, the alert may name a loop (`watch`, `compile`, `aggregate` "
            "...). That loop fails on an object, continues with all others, and retries the "
            "object.",
            impact="An unreadable limit or group is Accepted=False/Invalid and applies to no pod. "
            "A node with an unreadable NodePinConfig counts as a node without a report. If a loop "
            "fails on an object, only the results of this object stay as they are.",
            diagnosis=f"Rejected limits and groups, and the reason (`Invalid`):\n\n"
            f"```console\n{UNACCEPTED}\n```\n\n"
            "The log names unreadable NodePinConfigs:\n\n```console\n"
            "$ kubectl -n pinwarden-system logs -l app.kubernetes.io/component=operator --tail=-1 "
            "| grep 'cannot read NodePinConfig'\n```\n\nThe log names each object on which a loop "
            "fails, with the cause: `failed, others continue`.",
            mitigation="Bring operator, agents and CRDs to one version: the CRDs first, then `helm "
            "upgrade`. A failing loop is a defect: report it with that line of the log, and change "
            "or delete the object.",
        ),
    ),
)
