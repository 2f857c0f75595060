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
            meaning="No replica of the operator answers a scrape, or Prometheus does not know where to look.",
            impact=f"New pods and edits of limits reach no node, and statuses stand still. {STAYS}",
            diagnosis=SEE_OPERATOR,
            mitigation="See why its pods do not run (image, quota, nodes). Where they run, see that Prometheus may reach port 8080: "
            "`networkPolicy.enabled`, and the labels of the ServiceMonitor or PodMonitor.",
        ),
        Alert(
            name="PinwardenOperatorNoLeader",
            severity="critical",
            expr="sum(pinwarden_operator_leader) == 0",
            lasting="2m",
            summary="No replica of the operator may write.",
            description="Replicas of pinwarden's operator run, and none of them has held the Lease for 2 minutes.",
            meaning="A replica writes only while it holds the Lease `pinwarden-operator`. None does: the API server is away, or "
            "refuses it.",
            impact=f"As when no operator runs, and its metrics say nothing of the cluster. {STAYS}",
            diagnosis=SEE_OPERATOR,
            mitigation="The log says why the Lease cannot be acquired. Restore the API server, or the operator's rights on Leases in its "
            "namespace (`helm upgrade` puts them back).",
        ),
        Alert(
            name="PinwardenOperatorNotSynced",
            severity="warning",
            expr="min(pinwarden_operator_synced) == 0",
            lasting="5m",
            summary="A replica of the operator could not list everything.",
            description="A replica of pinwarden's operator has not listed all objects for 5 minutes; it writes nothing before.",
            meaning="A replica writes nothing until it has listed everything; with a partial list it would release limits it had "
            "not seen yet.",
            impact="This replica cannot take over. If it holds the Lease, nothing is written.",
            diagnosis=SEE_OPERATOR
            + "\n\n`/readyz` of the replica names what is missing:\n\n```console\n"
            "$ kubectl -n pinwarden-system port-forward POD 8080   # POD is the replica's\n"
            "$ curl -s localhost:8080/readyz                       # in another terminal\n```",
            mitigation="Install the CRDs of this version (`kubectl apply --server-side --force-conflicts --field-manager=helm -f "
            "charts/pinwarden/crds/`), and see that its ClusterRole is that of this version.",
        ),
        Alert(
            name="PinwardenWritesFail",
            severity="warning",
            expr='sum by (kind, result) (rate(pinwarden_operator_writes_total{result!~"written|conflict"}[15m])) > 0.01',
            lasting="10m",
            summary="The operator's writes of {{ $labels.kind }} fail: {{ $labels.result }}.",
            description="{{ $value | humanize }} writes a second of {{ $labels.kind }} have ended as {{ $labels.result }} for 10 "
            "minutes.",
            meaning="`throttled` is the API server's priority and fairness (429), `refused` a right or a schema, `server` and "
            "`unreachable` the API server itself. Conflicts are no failures: another one was quicker, and it is tried again.",
            impact="`spec`: nodes are not told of new pods and edits. `status`, `event`: people are not told. `finalizer`: groups do "
            "not go.",
            diagnosis=SEE_OPERATOR,
            mitigation="`refused`: install the CRDs and the chart of one version. `throttled`: look for who floods the API server; "
            "the operator "
            "itself writes at most 150 times a second and waits as long as it is told to.",
        ),
        Alert(
            name="PinwardenApplySlow",
            severity="warning",
            expr="histogram_quantile(0.9, sum by (le) (rate(pinwarden_operator_apply_seconds_bucket[15m]))) > 10",
            lasting="5m",
            summary="Edits of limits take long to reach the nodes.",
            description="One edit in ten took more than {{ $value | humanizeDuration }} until every node concerned had acknowledged it.",
            meaning="From when the operator saw a new generation of a limit or group until its status said that every node concerned "
            "has it. "
            "A second is usual. What never gets there is not in it: see PinwardenLimitNotApplied.",
            impact="New and edited limits hold late. Pods without the seccomp gate's profile run without them meanwhile.",
            diagnosis="The slowest part shows in the dashboard *Pinwarden / Cluster*, row *Operator*: queues, writes, throttling. "
            "One slow node "
            "slows every limit with a pod there:\n\n```console\n$ kubectl get nodepinconfigs -o custom-columns="
            "'NODE:.metadata.name,WANTED:.metadata.generation,HAS:.status.observedGeneration'\n```",
            mitigation="Where nodes lag, look at their agents (restarts, CPU limits). Where writes are throttled, see "
            "PinwardenWritesFail.",
        ),
        Alert(
            name="PinwardenObjectsUnreadable",
            severity="warning",
            expr="sum by (resource) (pinwarden_operator_unreadable_objects) > 0 or max by (resource) "
            '(label_replace(pinwarden_operator_items_failing, "resource", "$1", "loop", "(.+)")) > 0',
            lasting="5m",
            summary="The operator cannot read {{ $value }} {{ $labels.resource }}.",
            description="Pinwarden's operator has not been able to read {{ $value }} {{ $labels.resource }} for 5 minutes: the CRDs are of "
            "another version than it, or it has a defect.",
            meaning="An object has a field or a value that this version of the operator does not know. With the name of a loop (`watch`, "
            "`compile`, `aggregate` ...) in place of a kind, that loop fails on an object, goes on with all others, and tries it again.",
            impact="A limit or group that cannot be read is Accepted=False/Invalid and holds for nobody. A node whose NodePinConfig "
            "cannot be "
            "read counts as one that reported nothing. A loop that fails on an object leaves as it is what follows from that object alone.",
            diagnosis=f"Limits and groups that are not accepted, and the reason (`Invalid`):\n\n```console\n{UNACCEPTED}\n```\n\n"
            "NodePinConfigs that cannot be read are in the log:\n\n```console\n"
            "$ kubectl -n pinwarden-system logs -l app.kubernetes.io/component=operator --tail=-1 | "
            "grep 'cannot read NodePinConfig'\n```\n\nThe log names each object that a loop fails on, "
            "with the cause: `failed, others continue`.",
            mitigation="Bring operator, agents and CRDs to one version: the CRDs first, then `helm upgrade`. "
            "A loop that fails is a defect: report it with that line of the log, and change or delete the object.",
        ),
    ),
)
