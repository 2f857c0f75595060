"""The operator's process against a real API server: specs and statuses, and reverted changes."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ..waiting import eventually
from .operators import PINWARDEN, Cluster, Operator, config_path

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with Operator(cluster, Path(tmp_path_factory.mktemp("operator"))) as process:
        yield process.ready()


class Case:
    """A namespace with a pod on a node, and a limit over it."""

    def __init__(self, cluster: Cluster, **spec: Any) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace()
        self.node = cluster.node()
        self.pod = cluster.pod(self.namespace, self.node, {"app": "db"})
        self.uid = self.pod["metadata"]["uid"]
        self.limit = cluster.limit(self.namespace, **spec)
        self.name = self.limit.rpartition("/")[2]

    def agent(self) -> str:
        """Start the node's agent once the spec lists its own pod too; return its path."""
        path = self.cluster.agent(self.node)
        uid = self.cluster.find(path)["metadata"]["uid"]
        eventually(
            lambda: [
                pod["uid"] for pod in self.cluster.config(self.node).get("spec", {}).get("pods", [])
            ],
            lambda listed: uid in listed,
        )
        return path

    def wait_limits(self, expected: dict[str, int]) -> None:
        """Wait until the node is asked to hold exactly these limits for the pod."""
        eventually(
            lambda: self.cluster.limits_on(self.node).get(self.uid),
            lambda limits: limits == expected,
        )

    def judged(self, condition: str, status: str, reason: str) -> None:
        eventually(
            lambda: self.cluster.condition(self.limit, condition),
            lambda last: last == (status, reason),
        )


@pytest.fixture
def case(cluster: Cluster) -> Case:
    made = Case(cluster)
    made.wait_limits({made.name: MIB})
    return made


def test_node_spec_has_the_limits_of_its_pods(cluster: Cluster, case: Case) -> None:
    config = cluster.config(case.node)
    (owner,) = config["metadata"]["ownerReferences"]
    assert owner["uid"] == cluster.find(f"/api/v1/nodes/{case.node}")["metadata"]["uid"]
    managers = {entry["manager"] for entry in config["metadata"]["managedFields"]}
    assert managers == {"pinwarden-operator"}
    assert "finalizers" not in cluster.find(case.limit)["metadata"]
    assert "annotations" not in cluster.find(case.limit)["metadata"]


def test_static_pod_is_known_by_the_hash_of_its_configuration(cluster: Cluster, case: Case) -> None:
    hashed = "0123456789abcdef0123456789abcdef"
    mirror = cluster.static_pod(case.namespace, case.node, hashed)
    own = mirror["metadata"]["uid"]
    eventually(
        lambda: cluster.limits_on(case.node), lambda pods: set(pods) == {case.uid, own, hashed}
    )


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"spec": {"limits": [], "pods": []}}, id="an edit"),
        pytest.param({"spec": {"unknownPods": 0}}, id="a field that was added"),
        pytest.param({"metadata": {"ownerReferences": []}}, id="no owner"),
    ],
)
def test_manual_change_of_a_spec_is_reverted(
    cluster: Cluster, case: Case, patch: dict[str, Any]
) -> None:
    before = cluster.config(case.node)
    cluster.merge(config_path(case.node), patch)

    def put_back(config: dict[str, Any]) -> bool:
        owners = config["metadata"].get("ownerReferences")
        return (config["spec"], owners) == (before["spec"], before["metadata"]["ownerReferences"])

    after = eventually(lambda: cluster.config(case.node), put_back)
    assert int(after["metadata"]["resourceVersion"]) > int(before["metadata"]["resourceVersion"])


def test_deleted_object_is_recreated(cluster: Cluster, case: Case) -> None:
    old = cluster.config(case.node)["metadata"]["uid"]
    cluster.send("DELETE", config_path(case.node))
    eventually(
        lambda: cluster.config(case.node).get("metadata", {}).get("uid", old),
        lambda uid: uid != old,
    )
    case.wait_limits({case.name: MIB})


@pytest.mark.rule("P12")
def test_edited_limit_reaches_the_node_and_a_deleted_one_leaves_it(
    cluster: Cluster, case: Case
) -> None:
    cluster.merge(case.limit, {"spec": {"limit": "2Mi"}})
    case.wait_limits({case.name: 2 * MIB})
    cluster.send("DELETE", case.limit)
    case.wait_limits({})


def test_labels_of_pods_select_the_limits(cluster: Cluster) -> None:
    case = Case(cluster, podSelector={"matchLabels": {"app": "db"}})
    case.wait_limits({case.name: MIB})
    path = f"/api/v1/namespaces/{case.namespace}/pods/{case.pod['metadata']['name']}"
    cluster.merge(path, {"metadata": {"labels": {"app": "web"}}})
    case.wait_limits({})
    cluster.send("DELETE", f"{path}?gracePeriodSeconds=0")
    eventually(lambda: cluster.limits_on(case.node), lambda pods: not pods)


def test_labels_of_namespaces_and_nodes_select_the_ceilings(cluster: Cluster, case: Case) -> None:
    label = {"of": case.name}
    by_namespace = cluster.ceiling(limit="3Mi", namespaceSelector={"matchLabels": label})
    by_node = cluster.ceiling(limit="4Mi", nodeSelector={"matchLabels": label})
    cluster.merge(f"/api/v1/namespaces/{case.namespace}", {"metadata": {"labels": label}})
    case.wait_limits({case.name: MIB, by_namespace.rpartition("/")[2]: 3 * MIB})
    cluster.merge(f"/api/v1/nodes/{case.node}", {"metadata": {"labels": label}})
    cluster.merge(f"/api/v1/namespaces/{case.namespace}", {"metadata": {"labels": {"of": None}}})
    case.wait_limits({case.name: MIB, by_node.rpartition("/")[2]: 4 * MIB})


@pytest.mark.rule("H1")
def test_applied_follows_the_acknowledgement_of_this_very_spec(
    cluster: Cluster, case: Case
) -> None:
    case.agent()
    case.judged("Applied", "False", "Pending")
    case.wait_limits({case.name: MIB})
    cluster.acknowledge(case.node, pinned=8192)
    case.judged("Applied", "True", "Acknowledged")
    case.judged("Enforced", "True", "Enforced")
    status = cluster.find(case.limit)["status"]
    assert (status["pinnedBytes"], status["pinned"]) == (8192, "8Ki")
    header, row = cluster.kubectl("get", "pinl", case.name, "-n", case.namespace).splitlines()
    assert row.split()[header.split().index("PINNED")] == "8Ki"
    assert status["nodes"] == {"desired": 1, "applied": 1}
    cluster.merge(case.limit, {"spec": {"limit": "2Mi"}})
    case.judged("Applied", "False", "Pending")
    case.wait_limits({case.name: 2 * MIB})
    cluster.acknowledge(case.node)
    case.judged("Applied", "True", "Acknowledged")
    assert cluster.find(case.limit)["status"]["observedGeneration"] == 2


@pytest.mark.rule("H1")
def test_silent_agent_makes_it_unknown(cluster: Cluster, case: Case) -> None:
    case.judged("Applied", "Unknown", "AgentSilent")
    agent = case.agent()
    case.judged("Applied", "False", "Pending")
    cluster.acknowledge(case.node)
    case.judged("Enforced", "True", "Enforced")
    cluster.set_ready(agent, ready=False)
    case.judged("Enforced", "Unknown", "AgentSilent")
    cluster.set_ready(agent, ready=True)
    case.judged("Enforced", "True", "Enforced")
    cluster.set_lost(case.node, True)
    case.judged("Enforced", "Unknown", "AgentSilent")
    cluster.set_lost(case.node, False)
    case.judged("Enforced", "True", "Enforced")
    cluster.send("DELETE", f"{agent}?gracePeriodSeconds=0")
    case.judged("Enforced", "Unknown", "AgentSilent")


def test_unsupported_limit_is_reported_and_applies_to_no_pod(cluster: Cluster) -> None:
    case = Case(cluster, counting="OncePerPod")
    case.judged("Accepted", "False", "NotSupported")
    case.wait_limits({})


def test_limit_that_cannot_be_read_names_the_field_and_stops_no_other(cluster: Cluster) -> None:
    """As from an API server whose CRD is newer: `prepared` adds a field to the schema."""
    case = Case(cluster, burst=3)
    case.judged("Accepted", "False", "Invalid")
    conditions = cluster.find(case.limit)["status"]["conditions"]
    assert any("burst" in each["message"] for each in conditions)
    case.wait_limits({})
    other = Case(cluster)
    other.wait_limits({other.name: MIB})
    cluster.merge(case.limit, {"spec": {"burst": None}})
    case.judged("Accepted", "True", "Accepted")
    case.wait_limits({case.name: MIB})


def test_manual_change_of_a_status_is_reverted(cluster: Cluster, case: Case) -> None:
    case.judged("Accepted", "True", "Accepted")
    cluster.merge(f"{case.limit}/status", {"status": {"matchedPods": 77, "conditions": []}})
    case.judged("Accepted", "True", "Accepted")
    eventually(lambda: cluster.find(case.limit)["status"]["matchedPods"], lambda pods: pods == 1)


def test_changed_conditions_cause_events(cluster: Cluster, case: Case) -> None:
    case.agent()
    case.wait_limits({case.name: MIB})
    cluster.acknowledge(case.node)

    def reasons_of_events() -> set[tuple[str, str]]:
        listed = cluster.send("GET", f"/api/v1/namespaces/{case.namespace}/events")
        return {(item["involvedObject"]["name"], item["reason"]) for item in listed["items"]}

    expected = {(case.name, reason) for reason in ("Accepted", "Applied", "Enforced")}
    eventually(reasons_of_events, lambda found: expected <= found)


def denial(case: Case, number: int = 1, **changes: Any) -> dict[str, Any]:
    """A refused call as the agent of the case's node reports it."""
    return {
        "number": number,
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "pod": case.uid,
        "container": "main",
        "process": "db",
        "pid": 4242,
        "source": "Mlock",
        "asked": 4 * MIB,
        "used": 60 * MIB,
        "limit": 64 * MIB,
        "name": f"{case.namespace}/{case.name}",
        "uid": limit_uid(case),
        **changes,
    }


def limit_uid(case: Case) -> str:
    return str(case.cluster.find(case.limit)["metadata"]["uid"])


def events_on_pods(case: Case) -> list[dict[str, Any]]:
    """The Events on pods of the namespace."""
    listed = case.cluster.send("GET", f"/apis/events.k8s.io/v1/namespaces/{case.namespace}/events")
    return [item for item in listed["items"] if item["regarding"]["kind"] == "Pod"]


def test_denied_call_causes_one_event_on_its_pod(cluster: Cluster, case: Case) -> None:
    cluster.acknowledge(case.node)
    first = denial(case)
    cluster.acknowledge(case.node, recentDenials=[first], denialsDropped=0)
    (event,) = eventually(lambda: events_on_pods(case), bool)
    assert (event["type"], event["reason"], event["action"]) == ("Warning", "PinRefused", "Refuse")
    assert event["regarding"]["uid"] == case.uid
    assert (event["related"]["kind"], event["related"]["uid"]) == ("PinLimit", limit_uid(case))
    name = case.pod["metadata"]["name"]
    said = (
        'mlock of 4Mi by process "db" (pid 4242) in container main denied: '
        f"60Mi of 64Mi used, limit PinLimit {case.namespace}/{case.name}"
    )
    assert said in cluster.kubectl("describe", "pod", name, "-n", case.namespace)
    assert said in cluster.kubectl("events", "--for", f"pod/{name}", "-n", case.namespace)
    other = denial(case, 2, source="IoUring", process="a\n\u202eb")
    cluster.acknowledge(case.node, pinned=8192, recentDenials=[first, other], denialsDropped=0)
    eventually(lambda: len(events_on_pods(case)), lambda count: count == 2)
    assert 'process "a??b"' in cluster.kubectl("describe", "pod", name, "-n", case.namespace)


def test_denial_of_a_static_pod_is_where_kubectl_looks_for_it(cluster: Cluster, case: Case) -> None:
    hashed = f"{uuid.uuid4().hex}"
    mirror = cluster.static_pod(case.namespace, case.node, hashed)
    eventually(lambda: cluster.limits_on(case.node), lambda pods: hashed in pods)
    cluster.acknowledge(case.node)
    cluster.acknowledge(case.node, recentDenials=[denial(case, pod=hashed)])
    eventually(lambda: events_on_pods(case), bool)
    name = mirror["metadata"]["name"]
    assert "PinRefused" in cluster.kubectl("describe", "pod", name, "-n", case.namespace)


def test_agent_causes_no_event_on_pods_of_other_nodes(cluster: Cluster, case: Case) -> None:
    other = Case(cluster)
    other.wait_limits({other.name: MIB})
    cluster.acknowledge(case.node)
    strange = denial(case, 1, pod=other.uid)
    cluster.acknowledge(case.node, recentDenials=[strange, denial(case, 2)])
    eventually(lambda: events_on_pods(case), bool)
    assert not events_on_pods(other)


@pytest.mark.rule("H2", "P13")
def test_denials_are_summed_up_by_limit_and_absent_if_unknown(cluster: Cluster, case: Case) -> None:
    node = cluster.node()
    uid = cluster.pod(case.namespace, node)["metadata"]["uid"]
    other = cluster.limit(case.namespace, limit="2Mi")
    names = {case.name: MIB, other.rpartition("/")[2]: 2 * MIB}
    eventually(lambda: cluster.limits_on(node).get(uid), lambda limits: limits == names)
    case.wait_limits(names)
    theirs = str(cluster.find(other)["metadata"]["uid"])

    def denials(path: str) -> object:
        return cluster.find(path).get("status", {}).get("denials", "absent")

    cluster.acknowledge(case.node)
    cluster.acknowledge(node)
    eventually(
        lambda: cluster.find(other).get("status", {}).get("pinnedBytes"), lambda sum: sum == 8192
    )
    assert (denials(case.limit), denials(other)) == ("absent", "absent")
    mine = limit_uid(case)
    counts = [{"uid": mine, "count": 3}, {"uid": theirs, "count": 1}]
    cluster.acknowledge(case.node, denials={case.uid: counts})
    cluster.acknowledge(node, denials={uid: [{"uid": mine, "count": 4}]})
    eventually(lambda: (denials(case.limit), denials(other)), lambda found: found == (7, 1))
    top = cluster.find(case.limit)["status"]["topPods"]
    assert sorted(pod["denials"] for pod in top) == [3, 4]
    header, row = cluster.kubectl("get", "pinl", case.name, "-n", case.namespace).splitlines()
    assert row.split()[header.split().index("DENIED")] == "7"


@pytest.mark.rule("H1")
def test_limit_at_deny_is_enforced_only_if_every_pod_is_at_deny(
    cluster: Cluster,
) -> None:
    case = Case(cluster, minimumLevel="Deny")
    second = cluster.pod(case.namespace, case.node)["metadata"]
    for name in (case.pod["metadata"]["name"], second["name"]):
        started = {"name": "main", "containerID": "containerd://id", "image": "main", "imageID": ""}
        state = {"ready": True, "restartCount": 0, "state": {"running": {}}}
        path = f"/api/v1/namespaces/{case.namespace}/pods/{name}/status"
        cluster.merge(
            path, {"status": {"phase": "Running", "containerStatuses": [started | state]}}
        )
    case.agent()
    eventually(
        lambda: cluster.limits_on(case.node), lambda pods: {case.uid, second["uid"]} <= pods.keys()
    )
    deny = dict.fromkeys((case.uid, second["uid"]), "Deny")
    cluster.acknowledge(case.node, levels=deny)
    case.judged("Enforced", "True", "Enforced")
    cluster.acknowledge(case.node, levels={case.uid: "Deny"})

    def message() -> str:
        conditions = cluster.find(case.limit)["status"]["conditions"]
        return str(next(each["message"] for each in conditions if each["type"] == "Enforced"))

    said = eventually(message, lambda text: text.startswith("Not enforced"))
    assert f"pod {case.namespace}/{second['name']} (RlimitGate: level Converge only)" in said
    assert "Mlock is at Converge: RlimitGate" in said
    assert case.pod["metadata"]["name"] not in said
    assert cluster.condition(case.limit, "Enforced")[0] == "False"
    cluster.acknowledge(case.node, levels=deny)
    case.judged("Enforced", "True", "Enforced")


def test_idle_cluster_is_not_written_to_and_the_metrics_say_so(
    cluster: Cluster, case: Case, operator: Operator
) -> None:
    case.judged("Accepted", "True", "Accepted")

    def writes() -> float:
        return sum(
            operator.metric(f'pinwarden_operator_writes_total{{kind="{kind}",result="written"}}')
            for kind in ("spec", "status", "event")
        )

    def renewed() -> str:
        spec = cluster.find(
            "/apis/coordination.k8s.io/v1/namespaces/pinwarden-system/leases/pinwarden-operator"
        )
        return str(spec["spec"]["renewTime"])

    def next_renewal() -> None:
        last = renewed()
        eventually(renewed, lambda time: time != last)

    def settled() -> bool:
        before = writes()
        next_renewal()
        return writes() == before

    assert eventually(settled, bool)
    before = writes()
    next_renewal()
    next_renewal()
    assert writes() == before
    assert operator.metric("pinwarden_operator_leader") == 1.0
    assert operator.metric('pinwarden_operator_queue_length{queue="spec"}') == 0.0
    assert operator.get("/healthz")[0] == 200


def test_limits_of_all_namespaces_are_listed_by_condition(
    cluster: Cluster, case: Case, operator: Operator
) -> None:
    case.judged("Accepted", "True", "Accepted")
    items = [
        item
        for plural in ("pinlimits", "clusterpinlimits")
        for item in cluster.send("GET", f"{PINWARDEN}/{plural}")["items"]
    ]
    accepted = operator.metric('pinwarden_operator_limits{condition="Accepted",status="True"}')
    assert 1 <= accepted <= len(items)
