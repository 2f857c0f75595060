"""The operator's metrics of the cluster: of the leader alone, bounded, closed, and absent where nothing is known."""

from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.core import Metric

from monitoring import catalogue
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.controller import metrics_collector, metrics_families, resources
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.metrics_collector import ClusterCollector
from pinwarden.controller.store import Store
from pinwarden.controller.transform import AgentPod, KnownNode, StoredConfig
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.plan.limit_compiler import Settings
from pinwarden.plan.types import Node, Pod

Json = dict[str, Any]
Found = dict[str, dict[tuple[str, ...], float]]
LIMIT_STATUS: Json = {
    "observedGeneration": 1,
    "conditions": [],
    "matchedPods": 2,
    "nodes": {"desired": 2, "applied": 1},
    "pinnedBytes": 4096,
    "recommendation": "1Mi",
}


def condition(kind: str, status: str, reason: str = "X") -> Json:
    when = "2026-01-01T00:00:00Z"
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": when,
    }


def limit(
    name: str = "db", *, ready: str = "True", kind: str = "PinLimit", **status: Any
) -> resources.ObservedResource:
    metadata: Json = {
        "name": name,
        "uid": f"uid-{kind}-{name}",
        "generation": 1,
        "resourceVersion": "1",
    }
    if kind == "PinLimit":
        metadata["namespace"] = "ns"
    raw = {"kind": kind, "metadata": metadata, "spec": {"limit": "1Mi", "podSelector": {}}}
    raw["status"] = {**LIMIT_STATUS, "conditions": [condition("Ready", ready)], **status}
    return resources.read(PinLimit if kind == "PinLimit" else ClusterPinLimit, raw)


def group(name: str = "cache", **spec: Any) -> resources.ObservedResource:
    metadata = {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "generation": 1,
        "resourceVersion": "1",
    }
    full = {
        "backing": {"memfd": {"name": "x"}},
        "members": [{"podSelector": {}}],
        "accounting": "Borrow",
        **spec,
    }
    status: Json = {
        "conditions": [condition("Drained", "False")],
        "phase": "Draining",
        "chargeBytes": 8192,
    }
    return resources.read(
        SharedMemoryGroup,
        {"kind": "SharedMemoryGroup", "metadata": metadata, "spec": full, "status": status},
    )


def report(*pods: Json, **status: Any) -> StoredConfig:
    content = {"pods": list(pods), "denialsDropped": 0, **status}
    config = {
        "metadata": {"name": "n1", "uid": "u", "generation": 1},
        "spec": {},
        "status": content,
    }
    return StoredConfig("n1", "u", 1, b"", config)


def pod_report(uid: str, **fields: Any) -> Json:
    held = {"level": "Deny", "reason": "SeccompGate"}
    return {"uid": uid, "vmLck": 4096, "vmPin": 0, "peak": 8192, "processes": 1, **held, **fields}


@pytest.fixture
def store() -> Store:
    made = Store(Settings(), WorkQueue(), WorkQueue(), Metrics())
    made.put_node(KnownNode(Node("n1"), "node-uid"))
    made.put_agent(AgentPod("agent", "n1", True))
    for uid in ("p1", "p2"):
        made.put_pod(Pod("ns", f"pod-{uid}", uid, uid, "n1"))
    return made


def collected(store: Store, *, leading: bool = True, pods: bool = False) -> Found:
    return found(ClusterCollector(store, lambda: leading, Items(Metrics()), pods=pods).collect())


def found(families: Iterable[Metric]) -> Found:
    series: Found = {}
    for family in families:
        name = family.name.removeprefix("pinwarden_operator_")
        series[name] = {tuple(sample.labels.values()): sample.value for sample in family.samples}
    return series


DB = ("PinLimit", "ns", "db")


def test_a_limit_is_told_with_what_its_status_says(store: Store) -> None:
    store.put_resource(limit())
    told = collected(store)
    assert told["limit_info"] == {(*DB, "Pod", "Enforce", "Converge", "Share", "false"): 1}
    assert told["limit_bytes"] == {DB: 2**20} == told["limit_recommended_bytes"]
    assert told["limit_pinned_bytes"] == {DB: 4096}
    assert told["limit_nodes"] == {(*DB, "true"): 1, (*DB, "false"): 1}
    assert told["limit_condition"] == {(*DB, "Ready", "True"): 1}
    assert told["limit_overshoot_peak_bytes"] == {DB: 0}, "somebody looked"
    assert told["limits"]["Ready", "True"] == 1
    assert told["limits"]["Ready", "False"] == 0


@pytest.mark.rule("H2")
def test_what_is_not_known_is_absent(store: Store) -> None:
    store.put_resource(limit(pinnedBytes=None, recommendation=None))
    store.put_resource(group())
    told = collected(store)
    for name in ("limit_pinned_bytes", "limit_recommended_bytes", "limit_overshoot_peak_bytes"):
        assert told[name] == {}, name
    assert told["group_charge_bytes"] == {("ns", "cache"): 8192}
    for name in (
        "group_borrowed_bytes",
        "group_orphaned_bytes",
        "group_capacity_bytes",
        "group_fullest_bytes",
    ):
        assert told[name] == {}, name


def test_a_group_is_told_with_its_phase_and_whether_it_is_filled(store: Store) -> None:
    store.put_resource(group())
    made = {"management": "Create", "capacity": "1Mi", "backing": {"tmpfs": {}}}
    store.put_resource(group("made", **made))
    told = collected(store)
    assert {key[1]: key[-1] for key in told["group_info"]} == {"cache": "false", "made": "true"}
    assert told["group_phase"]["ns", "cache", "Draining"] == 1
    assert told["group_phase"]["ns", "cache", "Active"] == 0
    assert told["group_condition"]["ns", "cache", "Drained", "False"] == 1
    assert told["group_capacity_bytes"] == {("ns", "made"): 2**20}


def test_a_replica_that_may_not_write_tells_nothing_of_the_cluster(store: Store) -> None:
    store.put_resource(limit())
    store.put_resource(group())
    store.put_config(report(pod_report("p1")))
    told = collected(store, leading=False, pods=True)
    assert told.keys() == collected(store, pods=True).keys(), "the families stay"
    assert not any(told.values())


def test_nodes_pods_and_namespaces_are_summed_up(store: Store) -> None:
    fair = {"pod": "p1", "current": 10, "anonymous": 4, "shared": 3}
    store.put_config(
        report(
            pod_report("p1"), pod_report("p2", level="Observe", reason="Unheard"), fairView=[fair]
        )
    )
    store.put_node(KnownNode(Node("n2"), "other"))
    told = collected(store)
    assert told["governed_pods"] == {("Deny", "SeccompGate"): 1, ("Observe", "Other"): 1}
    assert told["governed_pinned_bytes"] == {(): 8192}
    assert told["namespace_pinned_bytes"] == {("ns",): 8192}
    assert told["namespace_pods"]["ns", "Deny"] == told["namespace_pods"]["ns", "Observe"] == 1
    assert told["namespace_pods"]["ns", "Kill"] == 0
    assert told["namespace_fair_bytes"] == {
        ("ns", "current"): 10,
        ("ns", "anonymous"): 4,
        ("ns", "shared"): 3,
    }
    assert told["nodes"]["answering",] == 1
    assert set(told["nodes_with_problem"].values()) == {0}
    assert "pod_pinned_bytes" not in told


def test_pods_are_told_when_they_are_asked_for(store: Store) -> None:
    store.put_resource(limit())
    store.put_resource(group())
    denials = [{"uid": "uid-PinLimit-db", "count": 3}]
    borrower = {"pod": "p1", "member": True, "borrowed": 7}
    groups = [{"uid": "uid-cache", "phase": "Active", "borrowers": [borrower]}]
    store.put_config(report(pod_report("p1", denials=denials), pod_report("p2"), groups=groups))
    told = collected(store, pods=True)
    one, two = ("ns", "pod-p1", "n1"), ("ns", "pod-p2", "n1")
    assert told["pod_pinned_bytes"] == {one: 4096, two: 4096}
    assert told["pod_level"] == {(*each, "Deny", "SeccompGate"): 1 for each in (one, two)}
    assert told["pod_denials"] == {one: 3}, "no gate holds the other one"
    assert told["pod_borrowed_bytes"] == {(*one, "ns/cache"): 7}
    assert told["pod_mapped_bytes"] == {}


def test_refusals_and_overshoots_are_counters_of_the_limit(store: Store) -> None:
    store.put_resource(limit())
    for count in (2, 5):
        over = {
            "limit": "uid-PinLimit-db",
            "pod": "p1",
            "peak": 1,
            "seconds": 0,
            "count": count,
            "lastTime": "2026-01-01T00:00:00Z",
        }
        denials = [{"uid": "uid-PinLimit-db", "count": count}]
        store.put_config(
            report(pod_report("p1", denials=denials), denialsDropped=count, overshoots=[over])
        )
    told = collected(store)
    assert told["limit_denials"] == told["limit_overshoots"] == {DB: 3}
    assert told["denials"] == {(): 3}
    store.remove_resource("ns/db", "uid-PinLimit-db")
    assert collected(store)["limit_denials"] == {}


def test_of_too_many_those_are_told_that_are_not_ready(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_collector, "MOST_LIMITS", 3)
    for number in range(6):
        store.put_resource(limit(f"l{number}", ready="False" if number == 5 else "True"))
    told = collected(store)
    assert [key[2] for key in told["limit_info"]] == ["l5", "l0", "l1"]
    assert told["series_omitted"] == {("limits",): 3, ("groups",): 0, ("namespaces",): 0}
    assert told["limits"]["Ready", "True"] == 5


def test_a_limit_that_cannot_be_read_has_its_conditions_alone(store: Store) -> None:
    raw = {
        "kind": "PinLimit",
        "metadata": {
            "name": "new",
            "namespace": "ns",
            "uid": "u",
            "generation": 1,
            "resourceVersion": "1",
        },
    }
    store.put_resource(
        resources.read(
            PinLimit,
            {
                **raw,
                "spec": {"later": 1},
                "status": {"conditions": [condition("Accepted", "False")]},
            },
        )
    )
    told = collected(store)
    assert told["limit_condition"] == {("PinLimit", "ns", "new", "Accepted", "False"): 1}
    assert told["limit_info"] == {}
    assert told["unreadable_objects"] == {("limits",): 1, ("groups",): 0, ("nodepinconfigs",): 0}


def test_a_node_that_cannot_be_read_is_counted_until_it_can(store: Store) -> None:
    store.put_config(report(weather="fair"))
    assert collected(store)["unreadable_objects"]["nodepinconfigs",] == 1
    store.put_config(report())
    assert collected(store)["unreadable_objects"]["nodepinconfigs",] == 0


def test_all_that_is_told_is_in_the_catalogue_and_few_series_are_for_a_limit_and_a_group(
    store: Store,
) -> None:
    store.put_config(report(pod_report("p1", denials=[])))
    store.put_resource(limit(kind="ClusterPinLimit", name="ceiling"))
    before = sum(map(len, collected(store).values()))
    everything = [*metrics_families.CONDITIONS]
    store.put_resource(limit(conditions=[condition(each, "True") for each in everything]))
    store.put_resource(group(capacity="1Mi"))
    after = sum(map(len, collected(store).values()))
    assert after - before < 45
    families = [*ClusterCollector(store, lambda: True, Items(Metrics()), pods=True).collect()]
    for sample in (sample for family in families for sample in family.samples):
        known = catalogue.labels_of(sample.name)
        assert tuple(sample.labels) == tuple(known), sample.name
        for label, value in sample.labels.items():
            assert isinstance(known[label], str) or value in known[label], (
                sample.name,
                label,
                value,
            )
