"""The namespaces with limits in each node's spec, on a real API server without other limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..waiting import eventually
from .operators import SYSTEM, Cluster, Operator

NAME = "kubernetes.io/metadata.name"
EXEMPT = ["kube-system", SYSTEM]


@pytest.fixture(scope="module", autouse=True)
def operator(own: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with Operator(own, Path(tmp_path_factory.mktemp("operator"))) as process:
        yield process.ready()


def wait_scope(cluster: Cluster, node: str, limited: list[str] | None, exempt: list[str]) -> None:
    """Wait until the node's spec has these namespaces."""

    def scope() -> tuple[Any, Any]:
        spec = cluster.config(node).get("spec", {})
        return spec.get("limitedNamespaces"), spec.get("exemptNamespaces")

    eventually(scope, lambda found: found == (limited, exempt))


def test_limited_namespaces_follow_limits_and_groups_on_nodes_without_pods(own: Cluster) -> None:
    node, first, second = own.node(), own.namespace(), own.namespace()
    wait_scope(own, node, [], [])
    limit = own.limit(first)
    wait_scope(own, node, [first], [])
    group = own.group(second)
    wait_scope(own, node, sorted([first, second]), [])
    named = own.ceiling(namespaceSelector={"matchLabels": {NAME: "kube-system"}})
    wait_scope(own, node, sorted([first, "kube-system", second]), [])
    own.send("DELETE", limit)
    own.send("DELETE", named)
    wait_scope(own, node, [second], [])
    any_namespace = own.ceiling(namespaceSelector={})
    wait_scope(own, node, None, EXEMPT)
    own.send("DELETE", any_namespace)
    own.send("DELETE", group)
    wait_scope(own, node, [], [])
