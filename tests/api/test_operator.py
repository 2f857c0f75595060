"""The operator's process against a real API server: what it makes of limits, pods, nodes and reports, and what it puts back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .operators import PINWARDEN, Cluster, Operator, config_path, eventually

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
        """The node's agent, once the spec that it is to acknowledge lists its own pod too; returns its path."""
        path = self.cluster.agent(self.node)
        uid = self.cluster.find(path)["metadata"]["uid"]
        eventually(
            lambda: [pod["uid"] for pod in self.cluster.config(self.node).get("spec", {}).get("pods", [])],
            lambda listed: uid in listed,
        )
        return path

    def held(self, expected: dict[str, int]) -> None:
        """Wait until the node is asked to hold exactly these limits for the pod."""
        eventually(lambda: self.cluster.held(self.node).get(self.uid), lambda limits: limits == expected)

    def judged(self, condition: str, status: str, reason: str) -> None:
        eventually(
            lambda: self.cluster.condition(self.limit, condition), lambda last: last == (status, reason)
        )


@pytest.fixture
def case(cluster: Cluster) -> Case:
    made = Case(cluster)
    made.held({made.name: MIB})
    return made


def test_a_node_is_asked_to_hold_what_its_pods_limits_say(cluster: Cluster, case: Case) -> None:
    config = cluster.config(case.node)
    (owner,) = config["metadata"]["ownerReferences"]
    assert owner["uid"] == cluster.find(f"/api/v1/nodes/{case.node}")["metadata"]["uid"]
    managers = {entry["manager"] for entry in config["metadata"]["managedFields"]}
    assert managers == {"pinwarden-operator"}
    assert "finalizers" not in cluster.find(case.limit)["metadata"]
    assert "annotations" not in cluster.find(case.limit)["metadata"]


def test_a_static_pod_is_known_by_the_hash_of_its_configuration(cluster: Cluster, case: Case) -> None:
    hashed = "0123456789abcdef0123456789abcdef"
    cluster.pod(case.namespace, case.node, None, **{"kubernetes.io/config.hash": hashed})
    eventually(lambda: cluster.held(case.node), lambda pods: set(pods) == {case.uid, hashed})


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"spec": {"limits": [], "pods": []}}, id="an edit"),
        pytest.param({"spec": {"unknownPods": 0}}, id="a field that was added"),
        pytest.param({"metadata": {"ownerReferences": []}}, id="no owner"),
    ],
)
def test_what_a_hand_changes_is_put_back(cluster: Cluster, case: Case, patch: dict[str, Any]) -> None:
    before = cluster.config(case.node)
    cluster.merge(config_path(case.node), patch)

    def put_back(config: dict[str, Any]) -> bool:
        owners = config["metadata"].get("ownerReferences")
        return (config["spec"], owners) == (before["spec"], before["metadata"]["ownerReferences"])

    after = eventually(lambda: cluster.config(case.node), put_back)
    assert int(after["metadata"]["resourceVersion"]) > int(before["metadata"]["resourceVersion"])


def test_a_deleted_object_is_made_again(cluster: Cluster, case: Case) -> None:
    old = cluster.config(case.node)["metadata"]["uid"]
    cluster.send("DELETE", config_path(case.node))
    eventually(lambda: cluster.config(case.node).get("metadata", {}).get("uid", old), lambda uid: uid != old)
    case.held({case.name: MIB})


@pytest.mark.rule("P12")
def test_an_edited_limit_reaches_the_node_and_a_deleted_one_leaves_it(cluster: Cluster, case: Case) -> None:
    cluster.merge(case.limit, {"spec": {"limit": "2Mi"}})
    case.held({case.name: 2 * MIB})
    cluster.send("DELETE", case.limit)
    case.held({})


def test_labels_of_pods_decide(cluster: Cluster) -> None:
    case = Case(cluster, podSelector={"matchLabels": {"app": "db"}})
    case.held({case.name: MIB})
    path = f"/api/v1/namespaces/{case.namespace}/pods/{case.pod['metadata']['name']}"
    cluster.merge(path, {"metadata": {"labels": {"app": "web"}}})
    case.held({})
    cluster.send("DELETE", f"{path}?gracePeriodSeconds=0")
    eventually(lambda: cluster.held(case.node), lambda pods: not pods)


def test_labels_of_namespaces_and_nodes_decide_for_a_ceiling(cluster: Cluster, case: Case) -> None:
    label = {"of": case.name}
    by_namespace = cluster.ceiling(limit="3Mi", namespaceSelector={"matchLabels": label})
    by_node = cluster.ceiling(limit="4Mi", nodeSelector={"matchLabels": label})
    cluster.merge(f"/api/v1/namespaces/{case.namespace}", {"metadata": {"labels": label}})
    case.held({case.name: MIB, by_namespace.rpartition("/")[2]: 3 * MIB})
    cluster.merge(f"/api/v1/nodes/{case.node}", {"metadata": {"labels": label}})
    cluster.merge(f"/api/v1/namespaces/{case.namespace}", {"metadata": {"labels": {"of": None}}})
    case.held({case.name: MIB, by_node.rpartition("/")[2]: 4 * MIB})


@pytest.mark.rule("H1")
def test_applied_follows_the_acknowledgement_of_this_very_spec(cluster: Cluster, case: Case) -> None:
    case.agent()
    case.judged("Applied", "False", "Pending")
    case.held({case.name: MIB})
    cluster.acknowledge(case.node, pinned=8192)
    case.judged("Applied", "True", "Acknowledged")
    case.judged("Enforced", "True", "Enforced")
    status = cluster.find(case.limit)["status"]
    assert status["pinnedBytes"] == 8192
    assert status["nodes"] == {"desired": 1, "applied": 1}
    cluster.merge(case.limit, {"spec": {"limit": "2Mi"}})
    case.judged("Applied", "False", "Pending")
    case.held({case.name: 2 * MIB})
    cluster.acknowledge(case.node)
    case.judged("Applied", "True", "Acknowledged")
    assert cluster.find(case.limit)["status"]["observedGeneration"] == 2


@pytest.mark.rule("H1")
def test_a_silent_agent_makes_it_unknown(cluster: Cluster, case: Case) -> None:
    case.judged("Applied", "Unknown", "AgentSilent")
    agent = case.agent()
    case.judged("Applied", "False", "Pending")
    cluster.acknowledge(case.node)
    case.judged("Enforced", "True", "Enforced")
    cluster.set_ready(agent, ready=False)
    case.judged("Enforced", "Unknown", "AgentSilent")
    cluster.set_ready(agent, ready=True)
    case.judged("Enforced", "True", "Enforced")
    cluster.send("DELETE", f"{agent}?gracePeriodSeconds=0")
    case.judged("Enforced", "Unknown", "AgentSilent")


def test_what_is_not_supported_is_said_and_holds_for_nobody(cluster: Cluster) -> None:
    case = Case(cluster, counting="OncePerPod")
    case.judged("Accepted", "False", "NotSupported")
    case.held({})


def test_a_limit_that_cannot_be_read_names_the_field_and_stops_no_other(cluster: Cluster) -> None:
    """As from an API server whose CRD is newer: `prepared` adds a field to the schema."""
    case = Case(cluster, burst=3)
    case.judged("Accepted", "False", "Invalid")
    conditions = cluster.find(case.limit)["status"]["conditions"]
    assert any("burst" in each["message"] for each in conditions)
    case.held({})
    other = Case(cluster)
    other.held({other.name: MIB})
    cluster.merge(case.limit, {"spec": {"burst": None}})
    case.judged("Accepted", "True", "Accepted")
    case.held({case.name: MIB})


def test_a_status_that_a_hand_changed_is_put_back(cluster: Cluster, case: Case) -> None:
    case.judged("Accepted", "True", "Accepted")
    cluster.merge(f"{case.limit}/status", {"status": {"matchedPods": 77, "conditions": []}})
    case.judged("Accepted", "True", "Accepted")
    eventually(lambda: cluster.find(case.limit)["status"]["matchedPods"], lambda pods: pods == 1)


def test_events_tell_of_conditions_that_changed(cluster: Cluster, case: Case) -> None:
    case.agent()
    case.held({case.name: MIB})
    cluster.acknowledge(case.node)

    def told() -> set[tuple[str, str]]:
        listed = cluster.send("GET", f"/api/v1/namespaces/{case.namespace}/events")
        return {(item["involvedObject"]["name"], item["reason"]) for item in listed["items"]}

    expected = {(case.name, reason) for reason in ("Accepted", "Applied", "Enforced")}
    eventually(told, lambda found: expected <= found)


def test_an_idle_cluster_is_not_written_to_and_the_metrics_say_so(
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


def test_the_limits_of_all_namespaces_are_listed_by_condition(
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
