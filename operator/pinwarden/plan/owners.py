"""Name the workload of a pod by the pod's metadata alone, as kubectl spells it."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pinwarden.plan.lasting import looks_like

_HASHES: Final = {"pod-template-hash": "deployment", "rollouts-pod-template-hash": "rollout"}
"""The owner of a ReplicaSet by a label of its pods; the ReplicaSet's name ends with the value."""
_SPARK_NAMES: Final = {
    "sparkoperator.k8s.io/app-name": "sparkapplication",
    "spark-app-name": "spark",
}
_SPARK_ROLE: Final = "spark-role"
_BUILT_IN: Final = ("deployment", "statefulset", "daemonset", "replicaset", "job", "cronjob")
_SCHEDULED: Final = re.compile(r"(.+)-(\d{8,})")
_MOST_MINUTES: Final = 60 * 24 * 31


def workload_of(metadata: Mapping[str, Any]) -> str:
    """Return the workload of a pod, such as `deployment/db`; empty without an owner.

    Only the pod is read. The name of a ReplicaSet is the name of its Deployment or Rollout with a
    hash, which its pods have as a label. The name of a CronJob's Job is the name of the CronJob
    with the minute. Spark's driver and executors have the name of their application as a label.
    """
    labels = metadata.get("labels") or {}
    if _SPARK_ROLE in labels:
        return _spark_application(metadata, labels)
    owner = _controller(metadata)
    if owner is None or owner["kind"] == "Node":
        return ""
    kind, name = owner["kind"].lower(), owner["name"]
    group = str(owner.get("apiVersion", "")).rpartition("/")[0]
    if kind in _BUILT_IN and group not in ("", "apps", "batch"):
        return f"{kind}.{group}/{name}"
    if kind == "replicaset":
        for label, maker in _HASHES.items():
            revision = labels.get(label)
            if revision and name.endswith(f"-{revision}"):
                return f"{maker}/{name.removesuffix(f'-{revision}')}"
    scheduled = _SCHEDULED.fullmatch(name) if kind == "job" else None
    if scheduled and _is_minute(int(scheduled[2]), metadata.get("creationTimestamp")):
        return f"cronjob/{scheduled[1]}"
    return f"{kind}/{name}"


def _controller(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    owners = metadata.get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def _spark_application(metadata: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return the application by its label, else by its driver `pi-<hash>-driver`."""
    for label, kind in _SPARK_NAMES.items():
        if labels.get(label):
            return f"{kind}/{labels[label]}"
    owner = _controller(metadata)
    if owner and owner["kind"] == "SparkApplication":
        return f"sparkapplication/{owner['name']}"
    driver = owner["name"] if owner and owner["kind"] == "Pod" else metadata.get("name", "")
    name = driver.removesuffix("-driver")
    start, _, end = name.rpartition("-")
    return f"spark/{start if start and looks_like(end) else name}"


def _is_minute(minute: int, created: str | None) -> bool:
    """Return whether the pod may belong to the Job of this minute since 1970."""
    if not created:
        return False
    return abs(datetime.fromisoformat(created).timestamp() / 60 - minute) <= _MOST_MINUTES
