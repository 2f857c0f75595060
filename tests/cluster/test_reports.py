"""Public reports of users with such programs, on a real cluster, each with the wanted result."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.cluster import Cluster
from cluster.image import NAME
from cluster.install import ROOT

from ..waiting import until
from .conftest import Kubectl

MIB = 2**20
PROGRAMS = Path(__file__).with_name("programs")
Json = dict[str, Any]
DROPPED: Json = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


class Place:
    """A namespace with the programs in it."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self.name = name
        self._kubectl = kubectl
        kubectl("create", "namespace", name)
        kubectl("-n", name, "create", "configmap", "programs", f"--from-file={PROGRAMS}")

    def run(
        self,
        name: str,
        *command: str,
        shm: bool = False,
        security: Json = DROPPED,
        resources: Json | None = None,
        **spec: Any,
    ) -> None:
        """A pod of user 1000 that runs a program, with the program's name as label `app`."""
        volumes: list[Json] = [{"name": "programs", "configMap": {"name": "programs"}}]
        mounts = [{"name": "programs", "mountPath": "/programs"}]
        if shm:
            volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "128Mi"}})
            mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        container = {
            "name": "main",
            "image": NAME,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", f"/programs/{command[0]}.py", *command[1:]],
            "securityContext": {"runAsUser": 1000, "runAsNonRoot": True, **security},
            "volumeMounts": mounts,
            "resources": resources or {},
        }
        more = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0}
        spec = {**more, "containers": [container], "volumes": volumes, **spec}
        metadata = {"name": name, "labels": {"app": command[0], "pod": name}}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def group(self, name: str, backing: Json, labels: dict[str, str], **spec: Any) -> None:
        member = {"podSelector": {"matchLabels": labels}}
        body = {"backing": backing, "accounting": "Borrow", "members": [member], **spec}
        self.apply(
            {
                "apiVersion": "pinwarden.io/v1alpha1",
                "kind": "SharedMemoryGroup",
                "metadata": {"name": name},
                "spec": body,
            }
        )

    def limit(self, app: str, limit: str, **spec: Any) -> None:
        body = {"podSelector": {"matchLabels": {"app": app}}, "limit": limit, **spec}
        self.apply(
            {
                "apiVersion": "pinwarden.io/v1alpha1",
                "kind": "PinLimit",
                "metadata": {"name": app},
                "spec": body,
            }
        )

    def apply(self, manifest: Json) -> None:
        self._kubectl("-n", self.name, "apply", "-f", "-", stdin=json.dumps(manifest))

    def status(self, kind: str, name: str) -> Json:
        found: Json = json.loads(self._kubectl("-n", self.name, "get", kind, name, "-o", "json"))
        return found.get("status") or {}

    def says(self, pod: str) -> str:
        """The pod's log once it has a line."""
        lines: list[str] = []

        def spoke() -> bool:
            if self.status("pod", pod).get("phase") == "Running":
                lines.append(self._kubectl("-n", self.name, "logs", pod))
            return bool(lines and lines[-1])

        until(spoke, f"{pod} says what it got")
        return lines[-1].strip()


@pytest.fixture
def place(request: pytest.FixtureRequest, installed: Cluster, kubectl: Kubectl) -> Iterator[Place]:
    found = Place(kubectl, f"report-{request.node.name.partition('[')[0].rpartition('_')[2]}")
    yield found
    kubectl("delete", "namespace", found.name, "--wait=false")


def condition(status: Json, kind: str) -> tuple[str, str]:
    """Status and reason of a condition; empty where there is none."""
    conditions = (each for each in status.get("conditions", []) if each["type"] == kind)
    return next(((each["status"], each["reason"]) for each in conditions), ("", ""))


def comes(read: Callable[[], Json], wanted: Callable[[Json], bool], what: str) -> Json:
    """The status once it is as wanted."""
    seen: list[Json] = []

    def holds() -> bool:
        seen.append(read())
        return wanted(seen[-1])

    until(holds, what)
    return seen[-1]


@pytest.mark.rule("M9", "M1")
def test_shared_memory_of_a_killed_container_is_reported_between_restarts(place: Place) -> None:
    """See https://github.com/kubernetes/kubernetes/issues/128339,
    https://github.com/vllm-project/vllm/pull/51317."""
    place.group("shm", {"posixShm": {"name": "*"}}, {"app": "fill"}, capacity="16Mi")
    place.run("filler", "fill", "64", shm=True, resources={"limits": {"memory": "48Mi"}})

    def waits() -> bool:
        statuses: list[Json] = place.status("pod", "filler").get("containerStatuses", [])
        container = next(iter(statuses), {})
        return container.get("restartCount", 0) > 0 and "waiting" in container.get("state", {})

    until(waits, "it waits for its next start")
    status = comes(
        lambda: place.status("smg", "shm") if waits() else {},
        lambda status: (
            16 * MIB < status.get("chargeBytes", 0) == status.get("orphanedBytes") and waits()
        ),
        "all of the charge is orphaned while no process of the container is there",
    )
    assert condition(status, "WithinLimit") == ("False", "OverCapacity")
    assert not status["borrowers"]


@pytest.mark.rule("M3", "M6", "H2")
def test_objects_are_counted_though_they_are_unlinked(place: Place) -> None:
    """See https://github.com/ray-project/ray/issues/31556,
    https://github.com/NVIDIA/nccl/issues/525."""
    place.group("plasma", {"posixShm": {"name": "plasma*"}}, {"app": "plasma"})
    place.run("store", "plasma", "8", shm=True)
    place.run("kept", "plasma", "8", "keep", shm=True)
    status = comes(
        lambda: place.status("smg", "plasma"),
        lambda status: status.get("chargeBytes") == 16 * MIB == status.get("borrowedBytes"),
        "both pods' objects are counted",
    )
    borrowed = {each["pod"]: each["borrowedBytes"] for each in status["borrowers"]}
    assert borrowed == {"store": 8 * MIB, "kept": 8 * MIB}
    assert status["orphanedBytes"] == 0
    assert condition(status, "Complete") == ("True", "AllCounted")


@pytest.mark.rule("M3")
def test_segments_with_random_keys_are_counted(place: Place) -> None:
    """See https://github.com/ManageIQ/manageiq-pods/pull/974,
    https://github.com/sclorg/postgresql-container/issues/97."""
    place.group("all", {"sysvShm": {"key": "*"}}, {"pod": "one"})
    place.group("main", {"sysvShm": {"key": "0x0052e2c1"}}, {"pod": "two"})
    place.run("one", "segments")
    place.run("two", "segments")
    for name, amount, objects in (("all", 11 * MIB, 5), ("main", 4 * MIB, 1)):
        status = comes(
            lambda name=name: place.status("smg", name),  # type: ignore[misc]
            lambda status, amount=amount: (
                status.get("chargeBytes") == amount == status.get("borrowedBytes")
            ),  # type: ignore[misc]
            f"{name} has what its keys name",
        )
        assert [each["objects"] for each in status["nodes"]] == [objects]


@pytest.mark.rule("P12", "P14", "H1")
def test_heap_is_locked_by_a_grant_alone(place: Place, kubectl: Kubectl) -> None:
    """https://github.com/elastic/elasticsearch/issues/75609."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": place.name}}
    ceiling: Json = {
        "podSelector": {},
        "namespaceSelector": selector,
        "limit": "512Mi",
        "maxGrant": "512Mi",
    }
    kind = {"apiVersion": "pinwarden.io/v1alpha1", "kind": "ClusterPinLimit"}
    place.apply({**kind, "metadata": {"name": place.name}, "spec": ceiling})
    try:
        place.limit("heap", "384Mi", grant=True)
        added = {"capabilities": {"add": ["IPC_LOCK", "SYS_RESOURCE"]}}
        place.run("capable", "heap", "32", "128", "wait", security=added)
        place.run("granted", "heap", "32", "128", "wait")
        place.run("hasty", "heap", "32", "128")
        assert (place.says("capable"), place.says("granted")) == ("locked", "locked")
        levels = {"granted": ("Converge", "RlimitGate"), "hasty": ("Converge", "RlimitGate")}
        levels |= {"capable": ("Observe", "CapIPCLock")}
        status = comes(
            lambda: place.status("pinlimit", "heap"),
            lambda status: (
                {
                    each["name"]: (each["level"], each["reason"])
                    for each in status.get("topPods", [])
                    if each.get("pinnedBytes", 0) >= 128 * MIB
                }
                == levels
            ),
            "what each has locked is counted, also that of one that was refused at first",
        )
        assert condition(status, "Enforced") == ("False", "CapIPCLock")
        assert condition(status, "Granted") == ("True", "Granted")
        assert condition(status, "WithinLimit") == ("True", "Sampled")
    finally:
        kubectl("delete", "clusterpinlimit", place.name)


@pytest.mark.rule("P1", "H1")
def test_rings_of_pods_with_one_uid_share_what_the_kernel_allows(place: Place) -> None:
    """See https://github.com/axboe/liburing/issues/93.

    Pinwarden counts each pod, and the kernel denies by the sum of the user.
    """
    place.limit("ring", "6Mi")
    unconfined = {"seccompProfile": {"type": "Unconfined"}}
    got: dict[str, int] = {}
    for name in ("first", "second"):
        place.run(name, "ring", "5", securityContext=unconfined)
        count, _, why = place.says(name).partition(": ")
        got[name] = int(count) * MIB
    assert got["first"] >= 4 * MIB
    assert got["second"] < 5 * MIB
    assert why == "Cannot allocate memory", "it is refused below its own limit"
    status = comes(
        lambda: place.status("pinlimit", "ring"),
        lambda status: (
            {each["name"]: each.get("pinnedBytes") for each in status.get("topPods", [])} == got
        ),
        "what each has is counted as its own",
    )
    assert condition(status, "WithinLimit")[0] == "True"


@pytest.mark.rule("H1")
def test_recommended_limit_outlives_an_upgrade_of_its_chart(
    place: Place, installed: Cluster, kubectl: Kubectl
) -> None:
    """See https://github.com/helm/charts/issues/7680,
    https://github.com/jetstack/version-checker/issues/140."""

    def release(version: str, chart: str) -> None:
        labels = {"app.kubernetes.io/name": "db", "app.kubernetes.io/instance": "prod"}
        changing = {
            "app.kubernetes.io/version": version,
            "helm.sh/chart": chart,
            "build": f"{version}-r1",
        }
        container = {
            "name": "main",
            "image": NAME,
            "command": ["python3", "-c", "import time; time.sleep(3600)"],
        }
        template = {
            "metadata": {"labels": labels | changing},
            "spec": {
                "containers": [container | {"imagePullPolicy": "IfNotPresent"}],
                "terminationGracePeriodSeconds": 0,
            },
        }
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        place.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "db"},
                "spec": spec,
            }
        )
        kubectl("-n", place.name, "rollout", "status", "deployment/db", "--timeout=240s")

    release("7.2.4", "db-18.1.0")
    advice = subprocess.run(
        [
            sys.executable,
            "-m",
            "pinwarden.plugin",
            "recommend",
            "deployment/db",
            "-n",
            place.name,
            "-o",
            "yaml",
        ],
        env=os.environ
        | {"KUBECONFIG": str(installed.kubeconfig), "PYTHONPATH": str(ROOT / "operator")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not any(word in advice.stdout for word in ("7.2.4", "18.1.0", "pod-template-hash"))
    kubectl("-n", place.name, "apply", "-f", "-", stdin=advice.stdout)

    def holds(status: Json) -> bool:
        return status.get("matchedPods") == 1 and condition(status, "Applied")[0] == "True"

    comes(lambda: place.status("pinlimit", "db"), holds, "it matches")
    release("7.2.5", "db-18.1.1")
    comes(lambda: place.status("pinlimit", "db"), holds, "it matches the next release too")
    kubectl("-n", place.name, "scale", "deployment/db", "--replicas=0")
    comes(
        lambda: place.status("pinlimit", "db"),
        lambda status: condition(status, "Ready") == ("True", "NoPods"),
        "no pod matches, which is no failure",
    )
