"""A bad object affects only itself: the operator continues, and reports a canary limit correctly.

The bad object is named. The cluster has the CRDs of an older release without bounds on reports. So
everything that a stolen token could store reaches the operator.
"""

import contextlib
import json
import os
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ..waiting import eventually
from .operators import PINWARDEN, Cluster, Operator, config_path, prepared

MIB = 1 << 20
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodepinconfigs.pinwarden.io"
BOUNDS = ("maxLength", "minLength", "pattern", "maximum", "minimum", "maxItems", "format")
HASH = "kubernetes.io/config.hash"
MORE_THAN_FIT = 4100

Json = dict[str, Any]


def unbounded(schema: Any) -> Any:
    """The same schema without bounds."""
    if isinstance(schema, list):
        return [unbounded(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: unbounded(value)
        for key, value in schema.items()
        if key not in BOUNDS or isinstance(value, dict)
    }


@pytest.fixture(scope="module")
def loose() -> Iterator[Cluster]:
    """A cluster whose NodePinConfigs take any report."""
    with prepared() as cluster:
        bounded = cluster.find(CRD)["spec"]
        version = bounded["versions"][0]
        properties = version["schema"]["openAPIV3Schema"]["properties"]
        properties["status"] = unbounded(properties["status"])
        cluster.merge(CRD, {"spec": bounded})
        node = cluster.node()
        body = {
            "apiVersion": "pinwarden.io/v1alpha1",
            "kind": "NodePinConfig",
            "metadata": {"name": node},
            "spec": {},
        }
        cluster.send("POST", f"{PINWARDEN}/nodepinconfigs", body)

        def takes_all() -> bool:
            with contextlib.suppress(urllib.error.HTTPError):
                kernel = {"status": {"kernelVersion": "x" * 300}}
                cluster.merge(f"{config_path(node)}/status", kernel)
                return True
            return False

        eventually(takes_all, bool)
        yield cluster


@pytest.fixture(scope="module")
def operator(loose: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with Operator(loose, Path(tmp_path_factory.mktemp("operator"))) as process:
        yield process.ready().leads()


class Canary:
    """A limit over a pod, each on a node of its own; `look` asserts that they are minded still."""

    def __init__(self, cluster: Cluster, operator: Operator) -> None:
        self.cluster, self.operator = cluster, operator
        self.namespace = cluster.namespace()
        self.limit = cluster.limit(self.namespace)

    def look(self) -> None:
        """A new pod on a new node is held, and what its agent reports is in the limit's status."""
        node = self.cluster.node()
        pod = self.cluster.pod(self.namespace, node)
        agent = self.cluster.find(self.cluster.agent(node))["metadata"]["uid"]
        expected = {pod["metadata"]["uid"]: {self.limit.rpartition("/")[2]: MIB}, agent: {}}
        eventually(lambda: self.cluster.limits_on(node), lambda limits: limits == expected)
        before = self.cluster.find(self.limit).get("status", {}).get("pinnedBytes") or 0
        self.cluster.acknowledge(node, pinned=8192)
        eventually(
            lambda: self.cluster.find(self.limit).get("status", {}).get("pinnedBytes"),
            lambda pinned: pinned == before + 8192,
        )
        assert self.operator.process.poll() is None


@pytest.fixture(scope="module")
def canary(loose: Cluster, operator: Operator) -> Canary:
    made = Canary(loose, operator)
    made.look()
    return made


@pytest.mark.rule("P1")
def test_annotation_of_any_length_affects_no_other_object(loose: Cluster, canary: Canary) -> None:
    """Seen: 65 characters ended the operator, on each start again."""
    namespace, node = loose.namespace(), loose.node()
    limit = loose.limit(namespace, limit="2Mi")
    texts = ["", "f" * 65, "f" * 120_000, "Ω" * 32, "\u202e\0\n"]
    pods = [
        *(loose.pod(namespace, node, None, None, **{HASH: text}) for text in texts),
        *(loose.static_pod(namespace, node, text) for text in texts),
    ]
    limits = {limit.rpartition("/")[2]: 2 * MIB}
    expected = {pod["metadata"]["uid"]: limits for pod in pods}
    eventually(lambda: loose.limits_on(node), lambda limits: limits == expected)
    canary.look()


HOSTILE_USE = {
    "vmLck": 0,
    "vmPin": 0,
    "peak": 0,
    "processes": 1,
    "level": "Observe",
    "reason": "CapIPCLock",
}


def of_pod(**fields: Any) -> Json:
    return {"pods": [HOSTILE_USE | fields]}


REPORTS: dict[str, Json] = {
    "a reason of 1,025 characters": of_pod(reason="R" * 1025),
    "an empty reason": of_pod(reason=""),
    "a reason that is no word": of_pod(reason="Ωmega\n\u202e"),
    "a message of 33 kB": of_pod(message="m" * 33_000),
    "a UID of 2 kB": of_pod(uid="u" * 2000),
    "a negative number": of_pod(vmLck=-1),
    "the largest number": of_pod(vmLck=2**62, vmPin=2**62, peak=2**62),
    "no time zone": {"sampledAt": "2026-01-01T00:00:00"},
    "no time": {"sampledAt": "yesterday"},
    "the first of all days": {"sampledAt": "0001-01-01T00:00:00+14:00"},
    "a day before all days": {"sampledAt": "0000-01-01T00:00:00Z"},
    "many pods of one name": {"pods": [HOSTILE_USE] * 5000},
    "an overshoot without an end": {
        "overshoots": [
            {
                "limit": "x",
                "peak": 2**62,
                "seconds": 1e308,
                "count": 2**62,
                "lastTime": "9999-12-31T23:59:59Z",
            }
        ]
    },
    "a long word for a limit": {
        "unsupportedLimits": [{"uid": "", "reason": "R" * 1025, "message": "m" * 40_000}]
    },
    "a kernel of 1 MB": {"kernelVersion": "k" * 1_000_000},
}


class Under:
    """A limit over two pods, on a node with a lying agent and on a node with an honest one."""

    def __init__(self, cluster: Cluster, honest: str) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace()
        self.node = cluster.node()
        self.limit = cluster.limit(self.namespace)
        cluster.agent(self.node)
        self.uid = cluster.pod(self.namespace, self.node)["metadata"]["uid"]
        self.honest_uid = cluster.pod(self.namespace, honest)["metadata"]["uid"]

    def lie(self, report: Json) -> None:
        eventually(lambda: self.cluster.limits_on(self.node).get(self.uid), bool)
        pods = (
            {"pods": [{"uid": self.uid, **each} for each in report["pods"]]}
            if "pods" in report
            else {}
        )
        status = {"observedGeneration": 1, **report, **pods}
        self.cluster.merge(f"{config_path(self.node)}/status", {"status": status})

    def is_reported(self) -> bool:
        """Return whether the status has the honest report, and does not trust the other one."""
        status = self.cluster.find(self.limit).get("status", {})
        conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
        known = status.get("pinnedBytes", 0) >= 4096 and status["matchedPods"] == 2
        return known and conditions["Ready"] != "True" and self.node in json.dumps(status)


@pytest.mark.rule("H1", "H2")
def test_writes_with_an_agents_token_affect_only_its_node(loose: Cluster, canary: Canary) -> None:
    """See https://github.com/elastic/cloud-on-k8s/issues/2034,
    https://github.com/akyriako/typesense-operator/issues/30."""
    honest = loose.node()
    loose.agent(honest)
    cases = {name: Under(loose, honest) for name in REPORTS}
    for name, case in cases.items():
        case.lie(REPORTS[name])
    uids = {case.honest_uid for case in cases.values()}
    eventually(lambda: loose.limits_on(honest).keys(), lambda pods: uids <= pods)
    loose.acknowledge(honest)
    eventually(
        lambda: [name for name, case in cases.items() if not case.is_reported()],
        lambda wrong: not wrong,
        60,
    )
    canary.look()


@pytest.mark.rule("M10")
def test_group_that_a_stolen_token_reports_goes_when_deleted(
    loose: Cluster, canary: Canary
) -> None:
    namespace, node = loose.namespace(), loose.node()
    liar = Under(loose, node)
    group = loose.group(namespace)
    metadata = eventually(
        lambda: loose.find(group)["metadata"], lambda found: found.get("finalizers")
    )
    liar.lie({"groups": [{"uid": metadata["uid"], "hash": "h", "phase": "Active"}]})
    uid = loose.pod(liar.namespace, liar.node)["metadata"]["uid"]
    eventually(lambda: loose.limits_on(liar.node), lambda pods: uid in pods)
    assert not loose.config(liar.node)["spec"].get("groups")
    loose.send("DELETE", group)
    eventually(lambda: loose.find(group), lambda found: not found)
    canary.look()


@pytest.mark.rule("H1")
def test_node_with_too_many_pods_is_reported_and_no_other_affected(
    loose: Cluster, canary: Canary
) -> None:
    """See https://github.com/virtual-kubelet/virtual-kubelet/issues/809,
    https://github.com/liqotech/liqo/issues/1101."""
    namespace, node = loose.namespace(), loose.node()
    limit = loose.limit(namespace)
    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:
        list(pool.map(lambda _: loose.pod(namespace, node), range(MORE_THAN_FIT)))
    eventually(lambda: len(loose.limits_on(node)), lambda count: count == 4096, 120)
    eventually(
        lambda: loose.condition(limit, "Applied"),
        lambda found: found == ("False", "TooManyPods"),
        120,
    )
    applied = next(
        each for each in loose.find(limit)["status"]["conditions"] if each["type"] == "Applied"
    )
    assert f"pod {namespace}/pod-" in applied["message"]
    canary.look()
