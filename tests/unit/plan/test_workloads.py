"""Recommended limits select the observed pods of their workload, and say their basis."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pinwarden.api.meta import LabelSelector
from pinwarden.api.pinlimit import Enforcement, PinLimit
from pinwarden.plan.selectors import selects
from pinwarden.plan.types import Pod
from pinwarden.plan.workloads import ObservedPod, advise, advise_limit, workloads

MIB = 1 << 20
SINCE = datetime(2026, 11, 20, tzinfo=UTC)


def pod(name: str, **labels: str) -> Pod:
    return Pod("team-a", name, f"u-{name}", f"u-{name}", "n1", labels)


def limit(**spec: Any) -> PinLimit:
    body = {
        "podSelector": {"matchLabels": {"app": "db"}},
        "limit": "8Mi",
        "enforcement": "Audit",
        **spec,
    }
    return PinLimit.model_validate(
        {"metadata": {"name": "mine", "namespace": "team-a"}, "spec": body}
    )


def test_recommended_limit_has_highest_peak_and_selects_all_pods() -> None:
    pods = [
        pod("db-0", app="db", tier="x", **{"apps.kubernetes.io/pod-index": "0"}),
        pod("db-1", app="db", tier="x"),
    ]
    observed = [
        ObservedPod(pods[0], "statefulset/db", 10 * MIB, SINCE),
        ObservedPod(pods[1], "statefulset/db", 20 * MIB, None),
    ]
    web = pod("web-0", app="web")
    (other, workload) = workloads([*observed, ObservedPod(web, "")], [*pods, web])
    advice = advise(workload)
    assert (advice.workload, advice.pods, advice.observed, advice.peak, advice.since) == (
        "statefulset/db",
        2,
        2,
        20 * MIB,
        SINCE,
    )
    assert advice.manifest is not None
    recommended = PinLimit.model_validate(advice.manifest)
    assert (recommended.metadata.name, recommended.spec.limit, recommended.spec.enforcement) == (
        "db",
        "24Mi",
        Enforcement.ENFORCE,
    )
    assert [selects(recommended.spec.pod_selector, pod.labels) for pod in [*pods, web]] == [
        True,
        True,
        False,
    ]
    assert advise(other).workload == "pod/web-0"


@pytest.mark.rule("H2")
def test_workload_without_observation_gets_audit_limit() -> None:
    (workload,) = workloads([ObservedPod(pod("db-0", app="db"), "deployment/db")], [])
    advice = advise(workload)
    assert advice.limit is None
    assert advice.manifest is not None
    recommended = PinLimit.model_validate(advice.manifest)
    assert (recommended.spec.enforcement, recommended.spec.limit) == (Enforcement.AUDIT, "8Mi")
    assert "agents report only pods with limits" in advice.basis


def test_workload_without_pinned_memory_gets_no_limit() -> None:
    (workload,) = workloads([ObservedPod(pod("db-0", app="db"), "deployment/db", 0, SINCE)], [])
    assert (advise(workload).limit, advise(workload).manifest) == (None, None)


def test_workload_with_audit_limit_gets_no_second_limit() -> None:
    (workload,) = workloads(
        [ObservedPod(pod("db-0", app="db"), "deployment/db", limits=[limit()])], []
    )
    assert advise(workload).manifest is None
    assert "limits: mine" in advise(workload).basis


def test_existing_limit_is_changed_and_keeps_other_fields() -> None:
    there = limit(minimumLevel="Deny")
    (workload,) = workloads(
        [ObservedPod(pod("db-0", app="db"), "deployment/db", 50 * MIB, SINCE, [there])], []
    )
    advice = advise(workload)
    assert advice.current == "mine 8Mi (Audit)"
    assert advice.manifest is not None
    assert advice.manifest["metadata"] == {"name": "mine", "namespace": "team-a"}
    assert advice.manifest["spec"] == {
        "podSelector": {"matchLabels": {"app": "db"}},
        "limit": "60Mi",
        "minimumLevel": "Deny",
        "enforcement": "Enforce",
    }
    wider = limit(podSelector={})
    (workload,) = workloads(
        [ObservedPod(pod("db-0", app="db"), "deployment/db", 50 * MIB, SINCE, [wider])], []
    )
    advice = advise(workload)
    assert advice.manifest is not None
    assert advice.manifest["metadata"]["name"] == "db"


@pytest.mark.rule("H2")
@pytest.mark.parametrize(
    ("amount", "held_back"), [("50Mi", True), ("52Mi", True), ("64Mi", False), ("48Mi", True)]
)
def test_peak_at_a_limit_is_remarked(amount: str, held_back: bool) -> None:
    there = limit(limit=amount, enforcement="Enforce")
    (workload,) = workloads(
        [ObservedPod(pod("db-0", app="db"), "deployment/db", 50 * MIB, SINCE, [there])], []
    )
    assert ("so they may need more" in advise(workload).basis) is held_back


def test_selector_that_matches_other_pods_is_remarked_and_selector_of_all_is_not_written() -> None:
    mine, other = pod("db-0", app="db"), pod("copy-0", app="db", tier="x")
    (workload,) = workloads([ObservedPod(mine, "deployment/db", MIB, SINCE)], [mine, other])
    assert "also matches 1 other pod, such as copy-0" in advise(workload).basis
    bare = pod("bare", **{"pod-template-hash": "1"})
    (workload,) = workloads([ObservedPod(bare, "deployment/bare", MIB, SINCE)], [bare, other])
    assert advise(workload).manifest is None
    assert "no limit is possible: the pods have no permanent label" in advise(workload).basis


def test_limit_is_recommended_as_in_its_status() -> None:
    advice = advise_limit(limit().model_copy(update={"status": None}))
    assert (advice.limit, advice.manifest) == (None, None)
    body = {
        "metadata": {"name": "mine", "namespace": "team-a"},
        "spec": {"podSelector": {}, "limit": "8Mi", "scope": "Container", "containers": ["main"]},
        "status": {"recommendation": "24Mi", "matchedPods": 3},
    }
    advice = advise_limit(PinLimit.model_validate(body))
    assert (advice.limit, advice.pods) == ("24Mi", 3)
    assert advice.manifest is not None
    assert advice.manifest["spec"]["containers"] == ["main"]


CHART = {
    "helm.sh/chart": "db-18.1.0",
    "app.kubernetes.io/version": "7.2.4",
    "app.kubernetes.io/name": "db",
}
SPARK = {"spark-role": "driver", "spark-app-selector": "spark-0aab"}
VIRT = {
    "kubevirt.io": "virt-launcher",
    "kubevirt.io/created-by": "7d0c2a3e-8e4b-4d0f-9a53-0123456789ab",
}


@pytest.mark.parametrize(
    ("workload", "labels", "selector"),
    [
        ("deployment/db", CHART, {"app.kubernetes.io/name": "db"}),
        ("rollout/db", {"rollouts-pod-template-hash": "6c7f8", "app": "db"}, {"app": "db"}),
        (
            "virtualmachineinstance/vm1",
            {**VIRT, "kubevirt.io/domain": "vm1", "kubevirt.io/nodeName": "n1"},
            {"kubevirt.io": "virt-launcher", "kubevirt.io/domain": "vm1"},
        ),
        (
            "spark/pi",
            {**SPARK, "spark-app-name": "pi"},
            {"spark-app-name": "pi", "spark-role": "driver"},
        ),
        ("spark/driver", SPARK, None),
        ("virtualmachineinstance/vm1", {**VIRT, "kubevirt.io/nodeName": "n1"}, None),
        ("statefulset/db", {"app": "db", "member": "db-0"}, {"app": "db"}),
        ("daemonset/db", {"app": "db", "on": "n1"}, {"app": "db"}),
        ("pod/db-0", {"app": "db-0"}, {"app": "db-0"}),
    ],
)
def test_selector_has_only_labels_of_the_next_version(
    workload: str, labels: dict[str, str], selector: dict[str, str] | None
) -> None:
    """https://github.com/helm/charts/issues/7680 and argoproj/argo-rollouts#219."""
    (grouped,) = workloads([ObservedPod(pod("db-0", **labels), workload, MIB, SINCE)], [])
    advice = advise(grouped)
    if selector is None:
        assert advice.manifest is None
        assert "no limit is possible" in advice.basis
    else:
        assert advice.manifest is not None
        assert advice.manifest["spec"]["podSelector"] == {"matchLabels": selector}


def test_owners_selector_comes_before_labels_of_pods() -> None:
    labels = {"app": "db", "stage": "red"}
    owner = LabelSelector.model_validate(
        {
            "matchLabels": {"app": "db", "app.kubernetes.io/version": "7"},
            "matchExpressions": [
                {"key": "app", "operator": "Exists"},
                {"key": "helm.sh/chart", "operator": "Exists"},
            ],
        }
    )
    mine = pod("db-0", **labels, **{"app.kubernetes.io/version": "7", "helm.sh/chart": "x"})
    (grouped,) = workloads([ObservedPod(mine, "deployment/db", MIB, SINCE, selector=owner)], [])
    advice = advise(grouped)
    assert advice.manifest is not None
    assert advice.manifest["spec"]["podSelector"] == {
        "matchLabels": {"app": "db"},
        "matchExpressions": [{"key": "app", "operator": "Exists"}],
    }
    assert advice.warning is not None
    assert "app.kubernetes.io/version=7" in advice.warning


def test_label_left_out_for_its_value_is_named() -> None:
    (grouped,) = workloads(
        [ObservedPod(pod("db-0", app="db", track="7.2.4"), "deployment/db", MIB, SINCE)], []
    )
    advice = advise(grouped)
    assert advice.manifest is not None
    assert advice.manifest["spec"]["podSelector"] == {"matchLabels": {"app": "db"}}
    assert advice.warning == (
        "left out of the selector, because the next release may change: "
        "track=7.2.4 looks like a version"
    )


def test_limit_with_version_in_selector_has_warning() -> None:
    body = {
        "metadata": {"name": "mine", "namespace": "team-a"},
        "spec": {"podSelector": {"matchLabels": CHART}, "limit": "8Mi"},
        "status": {"recommendation": "24Mi"},
    }
    warning = advise_limit(PinLimit.model_validate(body)).warning
    assert warning is not None
    assert "helm.sh/chart=db-18.1.0" in warning


def test_limit_name_has_only_allowed_letters() -> None:
    (grouped,) = workloads([ObservedPod(pod("x", app="db"), "spark/My_Job.", MIB, SINCE)], [])
    advice = advise(grouped)
    assert advice.manifest is not None
    assert advice.manifest["metadata"]["name"] == "my-job"
