"""Dashboards and alerts on a real Prometheus: each alert fires and clears, each panel has data.

The rules are those of the chart with all times 60 times shorter and the same thresholds. Bytes on
dead cgroups need cgroup v2, which this machine may lack. So the test reports them for a third node.
"""

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.controlplane import API_SERVER
from cluster.patience import Patience
from monitoring import catalogue
from monitoring.alerts import GROUPS, alerts
from monitoring.boards import BOARDS
from monitoring.grafana import Dashboard, Panel
from monitoring.pictures import Answer, draw, legend
from monitoring.rules import Pace, rules

from ..waiting import eventually
from .monitored import Stage, labels_in, scraped, send
from .operators import PINWARDEN, prepared

PACE = 60
MIB = 2**20
CHOSEN = {"$__rate_interval": "5s", "$namespace": ".+", "$node": ".+"}
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/pinwarden-operator"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodepinconfigs.pinwarden.io"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with prepared() as cluster, Stage(cluster, tmp_path, rules(GROUPS, Pace(PACE))) as stage:
        yield stage


def test_every_alert_fires_and_clears_and_every_panel_has_data(stage: Stage) -> None:
    start = time.time()
    limits_and_groups_go_wrong(stage)
    nodes_go_wrong(stage)
    the_operator_goes_wrong(stage)
    all_is_well_again(stage)
    end = time.time()
    fired = {
        each.labels["alertname"]
        for each in stage.prometheus.course('ALERTS{alertstate="firing"}', start, end, 0.5)
    }
    assert fired == {alert.name for alert in alerts()}
    answers = {board: answered(stage, board, start, end) for board in BOARDS}
    if folder := os.environ.get("PINWARDEN_PICTURES"):
        for board, panels in answers.items():
            Path(folder, f"dashboard-{board.name}.svg").write_text(draw(board, panels, start, end))


def limits_and_groups_go_wrong(stage: Stage) -> None:
    began = time.monotonic()
    cluster = stage.cluster
    stage.operators[0].leads()
    exact, borrower = stage.gated_pod("exact"), stage.gated_pod("borrower")
    stranger = stage.gated_pod("stranger", user=0)
    bare = stage.gated_pod("bare", profile=False)
    plain = [stage.plain_pod("plain") for _ in range(2)]
    stage.make("PinLimit", "exact", limit="1Mi", minimumLevel="Deny", podSelector=of("exact"))
    tiny = [
        stage.make("PinLimit", f"tiny-{number:02}", limit="4Ki", podSelector=of("plain"))
        for number in range(17)
    ]
    stage.make("PinLimit", "newer", limit="1Mi", burst=1, podSelector=of("none"))
    space = {"matchLabels": {"kubernetes.io/metadata.name": stage.namespace}}
    stage.ceiling = cluster.ceiling(limit="1Gi", enforcement="Audit", namespaceSelector=space)
    memfd = {"accounting": "Borrow", "backing": {"memfd": {"name": "ring"}}}
    ring = stage.make(
        "SharedMemoryGroup", "ring", **memfd, members=[{"podSelector": of("borrower")}]
    )
    cache = {"accounting": "Borrow", "backing": {"memfd": {"name": "cache"}}, "capacity": "72Mi"}
    stage.make("SharedMemoryGroup", "cache", **cache, members=[{"podSelector": of("bare")}])
    loose = {"accounting": "Borrow", "backing": {"memfd": {"name": "loose"}}}
    stage.make(
        "SharedMemoryGroup",
        "loose",
        **loose,
        members=[{"podSelector": of("bare"), "borrowLimit": "1Mi"}],
    )
    made = {
        "management": "Create",
        "backing": {"tmpfs": {}},
        "capacity": "1Gi",
        "deletionPolicy": "Orphan",
    }
    stage.make("SharedMemoryGroup", "roomy", **made, members=[{"podSelector": of("bare")}])
    pins = {"backing": {"memfd": {"name": "pins"}}, "accounting": "Borrow"}
    stage.make(
        "SharedMemoryGroup",
        "pins",
        **pins,
        members=[{"podSelector": of("bare"), "pinLimit": "1Mi"}],
    )
    far = {"backing": {"memfd": {"name": "far"}}, "members": [{"podSelector": of("plain")}]}
    stage.make("SharedMemoryGroup", "far", **far)
    a_third_node_reports(stage)
    eventually(
        lambda: {cluster.condition(path, "Applied")[0] for path in tiny},
        lambda found: found == {"True"},
    )
    counted = (
        f'pinwarden_operator_limit_overshoots_total{{resource_namespace="{stage.namespace}"}} == 0'
    )
    eventually(lambda: len(stage.prometheus.query(counted)), lambda count: count >= len(tiny))
    assert [send(each, "lock 65536") for each in plain] == [0, 0]
    assert send(exact, "lock 524288") == 0
    assert send(exact, "storm") == 0
    assert send(borrower, f"share ring {4 * MIB}") == 0
    assert send(bare, f"share loose {2 * MIB}") == 0
    path = f"/proc/{bare.pid}/fd/{send(bare, f'hold cache {70 * MIB}')}"
    eventually(lambda: send(stranger, f"map {path} {MIB}"), lambda error: error == errno.EACCES)
    eventually(
        lambda: cluster.find(ring)["status"].get("borrowedBytes"), lambda bytes: bytes == 4 * MIB
    )
    stage.delete(ring)
    stage.until_fired(
        *(
            "PinwardenLimitNotEnforced",
            "PinwardenLimitExceeded",
            "PinwardenOvershoot",
            "PinwardenDenialsHigh",
        ),
        *(
            "PinwardenNotAccepted",
            "PinwardenObjectsUnreadable",
            "PinwardenReportTruncated",
            "PinwardenNodeObserveOnly",
        ),
        *(
            "PinwardenAccountantSilent",
            "PinwardenGroupNotAvailable",
            "PinwardenGroupNotEnforced",
            "PinwardenGroupExceeded",
        ),
        *("PinwardenGroupNearCapacity", "PinwardenGroupOrphaned", "PinwardenGroupDrainStuck"),
        since=began,
        seconds=75,
    )
    everything_scraped_is_in_the_catalogue(stage)
    said = stage.prometheus.texts()
    texts = [text for each in said.values() for text in each]
    assert not [text for text in texts if "{{" in text or "error" in text or "<no value>" in text]
    assert (
        f"SharedMemoryGroup {stage.namespace}/cache is 97.22% full on a node."
        in said["PinwardenGroupNearCapacity"]
    )
    assert (
        f"Pods have pinned more than PinLimit {stage.namespace}/tiny-00 allows."
        in said["PinwardenLimitExceeded"]
    )


def a_third_node_reports(stage: Stage) -> None:
    """That bytes are on dead cgroups, as an agent on cgroup v2 would."""
    cluster = stage.cluster
    stage.third = cluster.node()
    cluster.agent(stage.third)
    cluster.pod(stage.namespace, stage.third, {"app": "written"})
    group = {"accounting": "Borrow", "backing": {"memfd": {"name": "written"}}}
    stage.make("SharedMemoryGroup", "written", **group, members=[{"podSelector": of("written")}])
    eventually(lambda: cluster.config(stage.third).get("spec", {}).get("groups"), bool)
    cluster.report_groups(stage.third, charge=8 * MIB, orphaned=4 * MIB, dead=2 * MIB)


def nodes_go_wrong(stage: Stage) -> None:
    began = time.monotonic()
    cluster = stage.cluster
    stage.gated.gate.send_signal(signal.SIGSTOP)
    stage.plain.agent.signal(signal.SIGSTOP)
    cluster.merge(
        f"{PINWARDEN}/namespaces/{stage.namespace}/pinlimits/tiny-00", {"spec": {"limit": "8Ki"}}
    )
    role = cluster.find(ROLE)
    fewer = [each for each in role["rules"] if "clusterpinlimits/status" not in each["resources"]]
    own = {"apiGroups": ["pinwarden.io"], "resources": ["pinlimits/status"], "verbs": ["patch"]}
    cluster.merge(ROLE, {"rules": [*fewer, own]})
    stage.until_fired(
        *(
            "PinwardenGateSilent",
            "PinwardenAgentSilent",
            "PinwardenLimitNotApplied",
            "PinwardenWritesFail",
        ),
        since=began,
        seconds=60,
    )
    cluster.merge(ROLE, {"rules": role["rules"]})
    stage.plain.agent.signal(signal.SIGCONT)
    for process in (stage.gated.gate, stage.gated.holder):
        process.kill()
        process.wait()
    (stage.gated.run_dir / "holder.sock").unlink()
    stage.gated.holder = stage.gated.start("holder")
    stage.gated.until(lambda: (stage.gated.run_dir / "holder.sock").exists())
    stage.gated.gate = stage.gated.start("gate", "--state-dir", str(stage.gated.state_dir))
    stage.until_fired("PinwardenApplySlow", "PinwardenGateLost", since=began, seconds=40)


def the_operator_goes_wrong(stage: Stage) -> None:
    began = time.monotonic()
    stage.cluster.server.kill(API_SERVER)
    stage.start_operator()
    stage.until_fired(
        "PinwardenOperatorNoLeader",
        "PinwardenOperatorNotSynced",
        "PinwardenAgentFailing",
        since=began,
        seconds=40,
    )
    stage.cluster.server.start(API_SERVER)
    stage.until_quiet("PinwardenOperatorNoLeader", seconds=30)
    stage.end_operators()
    stage.until_fired("PinwardenOperatorDown", since=began, seconds=20)
    for _ in range(2):
        stage.start_operator()
    eventually(lambda: stage.prometheus.query("sum(pinwarden_operator_synced) == 2"), bool, 60)
    stage.until_quiet(
        "PinwardenOperatorDown",
        "PinwardenOperatorNoLeader",
        "PinwardenOperatorNotSynced",
        seconds=30,
    )
    crd = stage.cluster.find(CRD)
    newer = stage.cluster.find(CRD)["spec"]["versions"]
    spec = newer[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["weather"] = {"type": "string", "default": "fair"}
    stage.cluster.merge(CRD, {"spec": {"versions": newer}})
    until_a_spec_is_written(stage, firing=True)
    stage.cluster.merge(CRD, {"spec": {"versions": crd["spec"]["versions"]}})
    until_a_spec_is_written(stage, firing=False)


def until_a_spec_is_written(stage: Stage, *, firing: bool) -> None:
    """New pods of the plain node, until its agent did not take, or did take, the spec with them."""
    patience = Patience(30)
    while ("PinwardenSpecNotTaken" in stage.prometheus.firing()) is not firing:
        assert not patience.ended, "PinwardenSpecNotTaken did not turn"
        stage.cluster.pod(stage.namespace, stage.plain.name, {"app": "free"})
        time.sleep(2)


def all_is_well_again(stage: Stage) -> None:
    stage.end_gated_pods()
    stage.account(stage.plain.state, stage.plain.run, stage.plain.cgroups)
    kinds = [
        f"{PINWARDEN}/namespaces/{stage.namespace}/{plural}"
        for plural in ("pinlimits", "sharedmemorygroups")
    ]

    def left(*deleted_nodes: str) -> list[str]:
        collect_garbage(stage, *deleted_nodes)
        items = {kind: stage.cluster.find(kind)["items"] for kind in kinds}
        return [f"{kind}/{item['metadata']['name']}" for kind in kinds for item in items[kind]]

    stage.delete(f"/api/v1/nodes/{stage.third}")
    for path in (*left(stage.third), stage.ceiling):
        stage.delete(path)
    eventually(lambda: left(stage.third), lambda resources: not resources, 60)
    nodes = (stage.gated_name, stage.plain.name, stage.third)
    for name in nodes:
        stage.delete(f"/api/v1/nodes/{name}")

    def firing() -> set[str]:
        collect_garbage(stage, *nodes)
        return stage.prometheus.firing()

    eventually(firing, lambda alerts: not alerts, 45)


def collect_garbage(stage: Stage, *deleted_nodes: str) -> None:
    """Delete the NodePinConfigs of deleted nodes, as the garbage collector does.

    An operator that has not yet seen the deletion of a Node may write its NodePinConfig again.
    """
    for name in deleted_nodes:
        stage.delete(f"{PINWARDEN}/nodepinconfigs/{name}")


def everything_scraped_is_in_the_catalogue(stage: Stage) -> None:
    texts = [stage.operators[0].get("/metrics")[1], *(scraped(agent) for agent in stage.agents)]
    for name, labels in (each for text in texts for each in labels_in(text)):
        if name.startswith("pinwarden_"):
            known = catalogue.labels_of(name)
            assert labels.keys() == known.keys(), name
            for label, value in labels.items():
                assert isinstance(known[label], str) or value in known[label], (name, label, value)


def answered(stage: Stage, board: Dashboard, start: float, end: float) -> dict[Panel, Answer]:
    """What Prometheus answers for each panel: not one query is empty."""
    answers: dict[Panel, Answer] = {}
    for panel in board.panels():
        found = []
        for query in panel.queries:
            expr = query.expr
            for name, value in CHOSEN.items():
                expr = expr.replace(name, value)
            series = stage.prometheus.course(expr, start, end, (end - start) / 200)
            assert series, f"{board.title}, {panel.title}: no data for {expr}"
            found += [(legend(query.legend, each.labels), each) for each in series]
        answers[panel] = found
    return answers


def of(app: str) -> dict[str, dict[str, str]]:
    return {"matchLabels": {"app": app}}
