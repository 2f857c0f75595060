"""The operator's process during an outage of etcd.

The API server then answers with errors, and its watches stay open and silent.
"""

from pathlib import Path

import pytest

from cluster.controlplane import ETCD

from ..waiting import eventually
from .operators import BACK_SECONDS, Cluster, Operator

MIB = 1 << 20


@pytest.mark.rule("H3")
def test_operator_is_consistent_within_15_seconds_of_etcd(cluster: Cluster, tmp_path: Path) -> None:
    namespace, node = cluster.namespace(), cluster.node()
    uid = cluster.pod(namespace, node)["metadata"]["uid"]
    path = cluster.limit(namespace)
    name = path.rpartition("/")[2]
    with Operator(cluster, tmp_path) as operator:
        eventually(lambda: cluster.limits_on(node).get(uid), lambda limits: limits == {name: MIB})
        cluster.merge(path, {"spec": {"limit": "2Mi"}})
        cluster.server.kill(ETCD)
        eventually(
            lambda: [
                line for line in operator.log if "cannot acquire the Lease" in line["message"]
            ],
            bool,
        )
        cluster.server.start(ETCD)
        eventually(
            lambda: cluster.limits_on(node).get(uid),
            lambda limits: limits == {name: 2 * MIB},
            BACK_SECONDS,
        )
        cluster.merge(path, {"spec": {"limit": "3Mi"}})
        eventually(
            lambda: cluster.limits_on(node).get(uid),
            lambda limits: limits == {name: 3 * MIB},
            BACK_SECONDS,
        )
        assert operator.process.poll() is None
        assert operator.terminate() == 0
