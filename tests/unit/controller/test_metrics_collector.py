"""The cluster's metrics: from the leader only, bounded, and absent if unknown."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.core import Metric

from monitoring import catalogue
from monitoring.alerts import alerts
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.controller import metrics_collector, metrics_families, resources
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.metrics_collector import ClusterCollector
from pinwarden.controller.store import Store
from pinwarden.controller.transform import AgentPod, KnownNode, StoredConfig
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.plan.limit_compiler import LimitSettings
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
    level = {"level": "Deny", "reason": "SeccompGate"}
    return {"uid": uid, "vmLck": 4096, "vmPin": 0, "peak": 8192, "processes": 1, **level, **fields}


@pytest.fixture
def store() -> Store:
    made = Store(LimitSettings(), WorkQueue(), WorkQueue(), Metrics())
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


def test_metrics_of_limit_equal_its_status(store: Store) -> None:
    store.put_resource(limit())
    series = collected(store)
    assert series["limit_info"] == {(*DB, "Pod", "Enforce", "Converge", "Share", "false"): 1}
    assert series["limit_bytes"] == {DB: 2**20} == series["limit_recommended_bytes"]
    assert series["limit_pinned_bytes"] == {DB: 4096}
    assert series["limit_nodes"] == {(*DB, "true"): 1, (*DB, "false"): 1}
    assert series["limit_condition"] == {(*DB, "Ready", "True"): 1}
    assert series["limit_overshoot_peak_bytes"] == {DB: 0}, "a node sampled the pods"
    assert series["limits"]["Ready", "True"] == 1
    assert series["limits"]["Ready", "False"] == 0


@pytest.mark.rule("H2")
def test_metrics_with_unknown_figure_have_no_sample(store: Store) -> None:
    store.put_resource(limit(pinnedBytes=None, recommendation=None))
    store.put_resource(group())
    series = collected(store)
    for name in ("limit_pinned_bytes", "limit_recommended_bytes", "limit_overshoot_peak_bytes"):
        assert series[name] == {}, name
    assert series["group_charge_bytes"] == {("ns", "cache"): 8192}
    for name in (
        "group_borrowed_bytes",
        "group_orphaned_bytes",
        "group_capacity_bytes",
        "group_fullest_bytes",
    ):
        assert series[name] == {}, name


def test_metrics_of_group_include_phase_and_prefault(store: Store) -> None:
    store.put_resource(group())
    made = {"management": "Create", "capacity": "1Mi", "backing": {"tmpfs": {}}}
    store.put_resource(group("made", **made))
    series = collected(store)
    assert {key[1]: key[-1] for key in series["group_info"]} == {"cache": "false", "made": "true"}
    assert series["group_phase"]["ns", "cache", "Draining"] == 1
    assert series["group_phase"]["ns", "cache", "Active"] == 0
    assert series["group_condition"]["ns", "cache", "Drained", "False"] == 1
    assert series["group_capacity_bytes"] == {("ns", "made"): 2**20}


def test_metrics_of_replica_without_lease_have_no_samples(store: Store) -> None:
    store.put_resource(limit())
    store.put_resource(group())
    store.put_config(report(pod_report("p1")))
    series = collected(store, leading=False, pods=True)
    assert series.keys() == collected(store, pods=True).keys(), "the families stay"
    assert not any(series.values())


def test_metrics_of_cluster_sum_nodes_pods_and_namespaces(store: Store) -> None:
    fair = {"pod": "p1", "current": 10, "anonymous": 4, "shared": 3}
    store.put_config(
        report(
            pod_report("p1"), pod_report("p2", level="Observe", reason="Unheard"), fairView=[fair]
        )
    )
    store.put_node(KnownNode(Node("n2"), "other"))
    series = collected(store)
    assert series["governed_pods"] == {("Deny", "SeccompGate"): 1, ("Observe", "Other"): 1}
    assert series["governed_pinned_bytes"] == {(): 8192}
    assert series["namespace_pinned_bytes"] == {("ns",): 8192}
    assert series["namespace_pods"]["ns", "Deny"] == series["namespace_pods"]["ns", "Observe"] == 1
    assert series["namespace_pods"]["ns", "Kill"] == 0
    assert series["namespace_fair_bytes"] == {
        ("ns", "current"): 10,
        ("ns", "anonymous"): 4,
        ("ns", "shared"): 3,
    }
    assert series["nodes"]["answering",] == 1
    assert set(series["nodes_with_problem"].values()) == {0}
    assert "pod_pinned_bytes" not in series


def test_metrics_of_pods_need_the_option(store: Store) -> None:
    store.put_resource(limit())
    store.put_resource(group())
    denials = [{"uid": "uid-PinLimit-db", "count": 3}]
    borrower = {"pod": "p1", "member": True, "borrowed": 7}
    groups = [{"uid": "uid-cache", "phase": "Active", "borrowers": [borrower]}]
    store.put_config(report(pod_report("p1", denials=denials), pod_report("p2"), groups=groups))
    series = collected(store, pods=True)
    one, two = ("ns", "pod-p1", "n1"), ("ns", "pod-p2", "n1")
    assert series["pod_pinned_bytes"] == {one: 4096, two: 4096}
    assert series["pod_level"] == {(*pod, "Deny", "SeccompGate"): 1 for pod in (one, two)}
    assert series["pod_denials"] == {one: 3}, "the other pod has no gate"
    assert series["pod_borrowed_bytes"] == {(*one, "ns/cache"): 7}
    assert series["pod_mapped_bytes"] == {}


def test_metrics_of_limit_count_denials_and_overshoots(store: Store) -> None:
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
    series = collected(store)
    assert series["limit_denials"] == series["limit_overshoots"] == {DB: 3}
    assert series["denials"] == {(): 3}
    store.remove_resource("ns/db", "uid-PinLimit-db")
    assert collected(store)["limit_denials"] == {}


def test_metrics_of_too_many_limits_keep_those_without_ready(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_collector, "MOST_LIMITS", 3)
    for number in range(6):
        store.put_resource(limit(f"l{number}", ready="False" if number == 5 else "True"))
    series = collected(store)
    assert [key[2] for key in series["limit_info"]] == ["l5", "l0", "l1"]
    assert series["series_omitted"] == {("limits",): 3, ("groups",): 0, ("namespaces",): 0}
    assert series["limits"]["Ready", "True"] == 5


def test_metrics_of_unreadable_limit_are_its_conditions(store: Store) -> None:
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
    series = collected(store)
    assert series["limit_condition"] == {("PinLimit", "ns", "new", "Accepted", "False"): 1}
    assert series["limit_info"] == {}
    assert series["unreadable_objects"] == {("limits",): 1, ("groups",): 0, ("nodepinconfigs",): 0}


def test_metrics_of_unreadable_nodepinconfig_count_until_readable(store: Store) -> None:
    store.put_config(report(weather="fair"))
    assert collected(store)["unreadable_objects"]["nodepinconfigs",] == 1
    store.put_config(report())
    assert collected(store)["unreadable_objects"]["nodepinconfigs",] == 0


def test_log_of_unreadable_nodepinconfig_matches_the_runbook(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.put_config(report(weather="fair"))
    (alert,) = (alert for alert in alerts() if "grep 'cannot read NodePinConfig" in alert.diagnosis)
    patterns = re.findall(r"grep '([^']+)'", alert.diagnosis)
    assert all(re.search(pattern, caplog.text) for pattern in patterns)


def test_metrics_are_all_in_the_catalogue_and_few_for_each_object(
    store: Store,
) -> None:
    store.put_config(report(pod_report("p1", denials=[])))
    store.put_resource(limit(kind="ClusterPinLimit", name="ceiling"))
    before = sum(map(len, collected(store).values()))
    store.put_resource(
        limit(conditions=[condition(kind, "True") for kind in metrics_families.CONDITIONS])
    )
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
