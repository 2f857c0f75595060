"""The operator's process through outages of the API server, and without a right that it needs."""

import signal
import time
from pathlib import Path

import pytest

from cluster.controlplane import API_SERVER
from pinwarden.controller.leader_election import POLL_SECONDS

from ..waiting import eventually
from .operators import BACK_SECONDS, Cluster, Operator, config_path

MIB = 1 << 20


@pytest.mark.rule("H3")
def test_operator_is_consistent_within_15_seconds_of_the_api_server(
    cluster: Cluster, tmp_path: Path
) -> None:
    namespace, node = cluster.namespace(), cluster.node()
    uid = cluster.pod(namespace, node)["metadata"]["uid"]
    kept, gone = cluster.limit(namespace), cluster.limit(namespace)
    names = [path.rpartition("/")[2] for path in (kept, gone)]
    with Operator(cluster, tmp_path) as operator:
        eventually(
            lambda: cluster.limits_on(node).get(uid),
            lambda limits: limits == dict.fromkeys(names, MIB),
        )
        operator.process.send_signal(
            signal.SIGSTOP
        )  # so that it sees none of what changes before the crash
        cluster.merge(kept, {"spec": {"limit": "2Mi"}})
        cluster.send("DELETE", gone)
        new = cluster.pod(namespace, node)["metadata"]["uid"]
        cluster.server.kill(API_SERVER)
        operator.process.send_signal(signal.SIGCONT)
        eventually(
            lambda: [
                line for line in operator.log if "cannot acquire the Lease" in line["message"]
            ],
            bool,
        )
        cluster.server.start(API_SERVER)
        expected = {uid: {names[0]: 2 * MIB}, new: {names[0]: 2 * MIB}}
        eventually(lambda: cluster.limits_on(node), lambda limits: limits == expected, BACK_SECONDS)
        eventually(
            lambda: cluster.find(kept).get("status", {}).get("observedGeneration"),
            lambda seen: seen == 2,
            BACK_SECONDS,
        )
        assert operator.process.poll() is None


def test_nothing_is_written_before_every_cache_is_full(cluster: Cluster, tmp_path: Path) -> None:
    """Without the right to list pods, the pods of a node would look as if there were none."""
    namespace, node = cluster.namespace(), cluster.node()
    role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/pinwarden-operator"
    rules = cluster.find(role)["rules"]
    without = [
        {**rule, "resources": [each for each in rule["resources"] if each != "pods"]}
        for rule in rules
    ]
    uid = cluster.pod(namespace, node)["metadata"]["uid"]
    cluster.merge(role, {"rules": without})
    try:
        with Operator(cluster, tmp_path) as operator:
            eventually(
                lambda: [
                    line
                    for line in operator.log
                    if "pods" in line["message"] and "403" in line["message"]
                ],
                bool,
            )
            time.sleep(2 * POLL_SECONDS)
            status, text = operator.get("/readyz")
            assert (status, "pods" in text) == (503, True)
            leading = operator.metric("pinwarden_operator_leader")
            assert leading == 0.0, "the Lease is for a replica that knows everything"
            assert cluster.find(config_path(node)) == {}
            cluster.merge(role, {"rules": rules})
            operator.leads()
            eventually(lambda: uid in cluster.limits_on(node), bool)
    finally:
        cluster.merge(role, {"rules": rules})
