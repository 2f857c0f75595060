"""The namespaces whose pods a limit or group may select, as each node's spec names them."""

from typing import Any

import pytest

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.plan.cluster import Cluster
from pinwarden.plan.dirty import CLEAN, Dirty
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.limit_compiler import Limit, LimitSettings
from pinwarden.plan.limited_namespaces import MAX_NAMESPACES, NamespaceScope
from pinwarden.plan.types import NAME_LABEL, Node

from .scopes import scope_of

EXEMPT = ("kube-system", "pinwarden-system")
ANY = NamespaceScope(None, EXEMPT)


def namespaced(namespace: str, name: str = "l", amount: str = "1Mi") -> PinLimit:
    return PinLimit.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}"},
            "spec": {"podSelector": {}, "limit": amount},
        }
    )


def cluster_wide(selector: dict[str, Any], name: str = "c") -> ClusterPinLimit:
    spec = {"podSelector": {}, "namespaceSelector": selector, "limit": "1Mi"}
    return ClusterPinLimit.model_validate({"metadata": {"name": name, "uid": name}, "spec": spec})


def named(*names: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": NAME_LABEL, "operator": "In", "values": list(names)}]}


def group(namespace: str, name: str = "l") -> Group:
    spec = {"backing": {"memfd": {"name": "ring"}}, "members": [{"podSelector": {}}]}
    metadata = {"name": name, "namespace": namespace, "uid": f"group-{name}"}
    return Group(SharedMemoryGroup.model_validate({"metadata": metadata, "spec": spec}))


def cluster(*limits: Limit, **settings: Any) -> Cluster:
    made = Cluster(LimitSettings(**settings))
    made.put_node(Node("n1"))
    for limit in limits:
        made.put_limit(limit)
    return made


def scope(cluster: Cluster) -> NamespaceScope:
    return scope_of(cluster.compiled("n1")[0])


def test_scope_has_namespaces_of_limits_and_groups() -> None:
    made = cluster(namespaced("b"), cluster_wide(named("c", "kube-system")))
    assert scope(made) == NamespaceScope(("b", "c", "kube-system"))
    assert made.put_group(group("a")).all_nodes
    assert scope(made) == NamespaceScope(("a", "b", "c", "kube-system"))


def test_scope_without_limits_is_empty() -> None:
    assert scope(cluster()) == NamespaceScope(())
    assert scope(cluster(namespaced("a", amount="1m"))) == NamespaceScope(()), "rejected"


@pytest.mark.parametrize(
    "selector",
    [
        {},
        {"matchLabels": {"team": "a"}},
        {"matchExpressions": [{"key": NAME_LABEL, "operator": "Exists"}]},
        {"matchExpressions": [{"key": NAME_LABEL, "operator": "NotIn", "values": ["a"]}]},
    ],
)
def test_scope_of_a_limit_that_names_no_namespace_excludes_only_exempt_ones(
    selector: dict[str, Any],
) -> None:
    made = cluster(cluster_wide(selector), namespaced("a"))
    assert scope(made) == ANY
    made.put_limit(namespaced("kube-system"))
    assert scope(made) == NamespaceScope(None, ("pinwarden-system",))
    made.remove_limit("c")
    assert scope(made) == NamespaceScope(("a", "kube-system"))


def test_scope_with_a_limit_for_unknown_pods_has_all_namespaces() -> None:
    assert scope(cluster(unknown_pods=0)) == NamespaceScope(None)


def test_scope_with_more_namespaces_than_fit_has_all_but_exempt_ones() -> None:
    names = [f"team-{number}" for number in range(MAX_NAMESPACES)]
    made = cluster(*map(namespaced, names))
    assert scope(made) == NamespaceScope(tuple(sorted(names)))
    assert made.put_limit(namespaced("more")).all_nodes
    assert scope(made) == ANY
    assert made.remove_limit("more/l").all_nodes
    assert scope(made) == NamespaceScope(tuple(sorted(names)))


def test_scope_of_an_operator_of_some_namespaces_has_no_others() -> None:
    made = cluster(namespaced("a"), watched=frozenset({"a", "b", "kube-system"}))
    made.put_limit(cluster_wide(named("a", "c")))
    assert scope(made) == NamespaceScope(("a",))
    made.put_limit(cluster_wide({}))
    assert scope(made) == NamespaceScope(("a", "b"))


def test_only_the_first_and_last_limit_of_a_namespace_dirty_all_nodes() -> None:
    made = cluster()
    assert made.put_limit(namespaced("a")) == Dirty(limits=frozenset({"a/l"}), all_nodes=True)
    assert made.put_limit(namespaced("a")) == CLEAN
    assert not made.put_limit(namespaced("a", amount="2Mi")).all_nodes
    assert not made.put_group(group("a")).all_nodes, "a group of the same name"
    assert not made.put_limit(namespaced("a", name="other")).all_nodes
    assert not made.put_limit(cluster_wide(named("a"))).all_nodes
    assert not made.remove_limit("a/l").all_nodes
    assert not made.remove_limit("a/other").all_nodes
    assert not made.remove_limit("c").all_nodes
    assert made.remove_group("a/l").all_nodes
    assert scope(made) == NamespaceScope(())
