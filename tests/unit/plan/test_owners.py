"""A pod belongs to the workload behind its owner references and labels."""

import pytest

from pinwarden.plan.owners import workload_of


@pytest.mark.parametrize(
    ("kind", "name", "labels", "expected"),
    [
        ("ReplicaSet", "db-5d8f", {"pod-template-hash": "5d8f"}, "deployment/db"),
        ("ReplicaSet", "db-5d8f", {}, "replicaset/db-5d8f"),
        ("StatefulSet", "db", {}, "statefulset/db"),
        ("Job", "night-1", {}, "job/night-1"),
        ("Node", "n1", {}, ""),
        ("ReplicaSet", "db-6c7f8", {"rollouts-pod-template-hash": "6c7f8"}, "rollout/db"),
        ("Job", "night-29743200", {}, "cronjob/night"),
        ("Job", "load-20260101", {}, "job/load-20260101"),
        ("VirtualMachineInstance", "vm1", {}, "virtualmachineinstance/vm1"),
        ("SparkApplication", "pi", {"spark-role": "driver"}, "sparkapplication/pi"),
        ("Pod", "pi-driver", {"spark-role": "executor", "spark-app-name": "pi"}, "spark/pi"),
        ("Pod", "pi-7f3a9d8b1c2e-driver", {"spark-role": "executor"}, "spark/pi"),
    ],
)
def test_workload_has_name_of_kubectl(
    kind: str, name: str, labels: dict[str, str], expected: str
) -> None:
    owners = [{"kind": "Other", "name": "x"}, {"kind": kind, "name": name, "controller": True}]
    created = "2026-07-21T00:00:03Z"
    metadata = {"labels": labels, "ownerReferences": owners, "creationTimestamp": created}
    assert workload_of(metadata) == expected


def test_kind_of_another_api_group_is_not_built_in() -> None:
    owner = {
        "apiVersion": "apps.kruise.io/v1beta1",
        "kind": "StatefulSet",
        "name": "db",
        "controller": True,
    }
    assert workload_of({"ownerReferences": [owner]}) == "statefulset.apps.kruise.io/db"


def test_pod_without_owner_has_no_workload() -> None:
    assert workload_of({}) == ""
