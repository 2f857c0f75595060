"""The index answers like a compilation from scratch, and names the changes of an event."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.plan.cluster import Cluster
from pinwarden.plan.dirty import CLEAN, Dirty
from pinwarden.plan.limit_compiler import (
    Limit,
    LimitSettings,
    limit_name,
    matches,
    reaches_namespace,
    rejection,
)
from pinwarden.plan.node_spec import compile_node
from pinwarden.plan.types import NAME_LABEL, Namespace, Node, Pod

from .scopes import changed_nodes, is_rescoped, scope_of

NODES = ["n1", "n2"]
NAMESPACES = ["a", "b", "kube-system"]
SOME_NAMESPACE = st.sampled_from(["a", "a", "a", "b", "kube-system"])
LABELS = st.sampled_from([{}, {"tier": "x"}, {"tier": "y"}])
NODE_LABELS = st.sampled_from([{}, {"tier": "x"}, {"tier": "y"}, {"kubernetes.io/os": "windows"}])
SELECTORS = st.sampled_from(
    [
        {},
        {},
        {"matchLabels": {"tier": "x"}},
        {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]},
    ]
)
NAMED = [
    {"matchLabels": {NAME_LABEL: "a"}},
    {"matchExpressions": [{"key": NAME_LABEL, "operator": "In", "values": NAMESPACES[1:]}]},
]
AMOUNTS = st.sampled_from(["1Mi", "1Mi", "2Mi", "2Mi", "1Gi", "1m"])


def a_pod(
    uid: str,
    namespace: str,
    node: str,
    labels: dict[str, str],
    running: bool,
    terminal: bool,
    windows: bool = False,
    static_hash: str = "",
) -> Pod:
    return Pod.of(
        namespace=namespace,
        name=f"pod-{uid}",
        uid=uid,
        cgroup_uid=static_hash or uid,
        node=node,
        labels=labels,
        containers={"main": f"id-{uid}" if running else None},
        terminal=terminal,
        windows=windows,
    )


def namespaced(
    name: str, namespace: str, amount: str, selector: Any, scope: str, grant: bool
) -> PinLimit:
    return PinLimit.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}"},
            "spec": {"podSelector": selector, "limit": amount, "scope": scope, "grant": grant},
        }
    )


def cluster_wide(
    name: str, amount: str, pods: Any, namespaces: Any, nodes: Any, granted: str | None
) -> ClusterPinLimit:
    spec = {
        "podSelector": pods,
        "namespaceSelector": namespaces,
        "nodeSelector": nodes,
        "limit": amount,
    }
    if granted is not None:
        spec["maxGrant"] = granted
    return ClusterPinLimit.model_validate(
        {"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": spec}
    )


PODS = st.builds(
    a_pod,
    st.sampled_from("1234"),
    SOME_NAMESPACE,
    st.sampled_from(["", *NODES, *NODES]),
    LABELS,
    st.booleans(),
    st.sampled_from([False, False, False, False, True]),
    st.sampled_from([False, False, False, False, True]),
    st.sampled_from(["", "", "h"]),
)
LIMITS: st.SearchStrategy[Limit] = st.one_of(
    st.builds(
        namespaced,
        st.sampled_from("pq"),
        SOME_NAMESPACE,
        AMOUNTS,
        SELECTORS,
        st.sampled_from(["Pod", "Container"]),
        st.booleans(),
    ),
    st.builds(
        cluster_wide,
        st.sampled_from("uv"),
        AMOUNTS,
        SELECTORS,
        st.one_of(SELECTORS, st.sampled_from(NAMED)),
        SELECTORS,
        st.sampled_from([None, "1Mi"]),
    ),
)
LIMIT_NAMES = ["u", "v", *(f"{namespace}/{name}" for namespace in NAMESPACES for name in "pq")]


class Mirror:
    """The same objects in plain dictionaries, with every answer computed from scratch."""

    def __init__(self) -> None:
        self.world = Cluster()
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.removed_namespaces: set[str] = set()
        self.limits: dict[str, Limit] = {}

    def settle(self) -> None:
        """A removed namespace ends with its last pod."""
        pods = [pod for pod in self.pods.values() if pod.node and not (pod.terminal or pod.windows)]
        for name in self.removed_namespaces - {pod.namespace for pod in pods}:
            self.removed_namespaces.discard(name)
            self.namespaces.pop(name, None)

    def spec(self, node: Node) -> NodePinConfigSpec:
        on_node = [pod for pod in self.pods.values() if pod.node == node.name]
        return compile_node(
            node, on_node, self.namespaces, list(self.limits.values()), LimitSettings()
        )

    def contested(self, pod: Pod) -> bool:
        claimants = [
            uid
            for uid, other in self.pods.items()
            if (other.node, other.cgroup_uid) == (pod.node, pod.cgroup_uid)
            and not (other.terminal or other.windows)
        ]
        return pod.cgroup_uid != pod.uid and len(claimants) > 1

    def pods_of(self, limit: Limit) -> list[str]:
        if rejection(limit) is not None:
            return []
        return sorted(
            pod.uid
            for pod in self.pods.values()
            if pod.node
            and not pod.terminal
            and matches(
                limit,
                pod,
                self.namespaces.get(pod.namespace) or Namespace(pod.namespace),
                self.nodes.get(pod.node) or Node(pod.node),
                LimitSettings(),
            )
        )

    def check(self) -> None:
        assert set(self.world.nodes) == set(self.nodes)
        assert set(self.world.limits) == set(self.limits)
        for node in self.nodes.values():
            spec = self.world.compiled(node.name)[0]
            assert spec == self.spec(node)
            limited, exempt = scope_of(spec)
            for name in self.selectable():
                assert name not in exempt if limited is None else name in limited
        for name, limit in self.limits.items():
            pods = self.world.pods_of(name)
            assert sorted(pod.uid for pod in pods) == self.pods_of(limit)
            assert all(pod.contested == self.contested(pod) for pod in pods)
            assert self.world.rejection(name) == rejection(limit)
        for node_name in NODES:
            governing = {
                name for name, limit in self.limits.items() if self.held_on(limit, node_name)
            }
            assert self.world.limits_on(node_name) == governing

    def selectable(self) -> set[str]:
        """The namespaces with pods that a limit may select."""
        return {
            name
            for name in NAMESPACES
            for limit in self.limits.values()
            if rejection(limit) is None
            and reaches_namespace(
                limit, self.namespaces.get(name) or Namespace(name), LimitSettings()
            )
        }

    def held_on(self, limit: Limit, node: str) -> bool:
        return any(self.pods[uid].node == node for uid in self.pods_of(limit))

    def specs(self) -> dict[str, NodePinConfigSpec]:
        return {name: self.spec(node) for name, node in self.nodes.items()}

    def facts(self) -> dict[str, object]:
        """All input of a limit's status except the reports of agents."""
        grants = {
            (limit.uid, pod.uid): limit.grant
            for spec in self.specs().values()
            for limit in spec.limits
            for pod in spec.pods
            if limit.name in pod.limits
        }
        return {
            name: (
                limit.spec,
                [
                    replace(self.pods[uid], labels={}, contested=self.contested(self.pods[uid]))
                    for uid in self.pods_of(limit)
                ],
                self.world.overriding(name),
                sorted(
                    (pod, grant)
                    for (uid, pod), grant in grants.items()
                    if uid == limit.metadata.uid and grant
                ),
            )
            for name, limit in self.limits.items()
        }


Operation = Callable[[Mirror], Dirty]


def put_pod(pod: Pod) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        old = mirror.pods.get(pod.uid, pod)
        if (old.node, old.namespace) != (pod.node, pod.namespace):
            del mirror.pods[pod.uid]
            mirror.settle()
        mirror.pods[pod.uid] = pod
        mirror.settle()
        return mirror.world.put_pod(pod)

    return run


def remove_pod(uid: str) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.pods.pop(uid, None)
        mirror.settle()
        return mirror.world.remove_pod(uid)

    return run


def put_node(name: str, labels: dict[str, str]) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.nodes[name] = Node(name, labels)
        return mirror.world.put_node(Node(name, labels))

    return run


def remove_node(name: str) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.nodes.pop(name, None)
        return mirror.world.remove_node(name)

    return run


def put_namespace(name: str, labels: dict[str, str]) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.namespaces[name] = Namespace(name, labels)
        mirror.removed_namespaces.discard(name)
        return mirror.world.put_namespace(Namespace(name, labels))

    return run


def remove_namespace(name: str) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.removed_namespaces.add(name)
        mirror.settle()
        return mirror.world.remove_namespace(name)

    return run


def put_limit(limit: Limit) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.limits[limit_name(limit)] = limit
        return mirror.world.put_limit(limit)

    return run


def remove_limit(name: str) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.limits.pop(name, None)
        return mirror.world.remove_limit(name)

    return run


OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(put_pod, PODS),
    st.builds(put_limit, LIMITS),
    st.builds(put_node, st.sampled_from(NODES), NODE_LABELS),
    st.builds(put_namespace, st.sampled_from(NAMESPACES), LABELS),
    st.builds(remove_pod, st.sampled_from("1234")),
    st.builds(remove_limit, st.sampled_from(LIMIT_NAMES)),
    st.builds(remove_node, st.sampled_from(NODES)),
    st.builds(remove_namespace, st.sampled_from(NAMESPACES)),
)
SOME_PODS = st.lists(st.builds(put_pod, PODS), min_size=2, max_size=5)
SOME_LIMITS = st.lists(st.builds(put_limit, LIMITS), min_size=2, max_size=4)
BOTH_NODES: list[Operation] = [put_node(name, {"tier": "x"}) for name in NODES]


@given(SOME_PODS, SOME_LIMITS, st.lists(OPERATIONS, min_size=1, max_size=8))
def test_cluster_after_any_events_equals_compilation_from_scratch(
    pods: list[Operation], limits: list[Operation], operations: list[Operation]
) -> None:
    mirror = Mirror()
    for operation in [*pods, *BOTH_NODES, *limits]:
        operation(mirror)
    for operation in operations:
        operation(mirror)
        mirror.check()


@given(SOME_PODS, SOME_LIMITS, st.lists(OPERATIONS, min_size=1, max_size=4))
def test_cluster_event_dirties_what_changed_and_repetition_nothing(
    pods: list[Operation], limits: list[Operation], operations: list[Operation]
) -> None:
    mirror = Mirror()
    for operation in [*BOTH_NODES, *limits, *pods]:
        operation(mirror)
    for operation in operations:
        specs, facts = mirror.specs(), mirror.facts()
        dirty = operation(mirror)
        now = mirror.specs()
        assert changed_nodes(specs, now) <= dirty.nodes
        assert is_rescoped(specs, now) <= dirty.all_nodes
        assert dirty.nodes <= set(now)
        changed = {name for name, fact in mirror.facts().items() if facts.get(name) != fact}
        assert changed | (set(facts) - set(mirror.limits)) <= dirty.limits
        assert operation(mirror) == CLEAN


def loaded(*limits: Limit) -> Cluster:
    world = Cluster()
    for node in NODES:
        world.put_node(Node(node))
    for limit in limits:
        world.put_limit(limit)
    return world


def test_pod_event_without_new_field_dirties_nothing() -> None:
    world = loaded(namespaced("p", "a", "1Mi", {}, "Pod", False))
    pod = a_pod("1", "a", "n1", {"app": "x"}, running=False, terminal=False)
    assert world.put_pod(pod) == Dirty(frozenset({"n1"}), frozenset({"a/p"}))
    relabelled = a_pod("1", "a", "n1", {"app": "y"}, running=False, terminal=False)
    assert world.put_pod(relabelled) == CLEAN, "the label is read by no selector"


def test_started_container_dirties_node_only_with_limit_per_container() -> None:
    waiting, running = (
        a_pod("1", "a", "n1", {}, running, terminal=False) for running in (False, True)
    )
    by_pod = loaded(namespaced("p", "a", "1Mi", {}, "Pod", False))
    by_pod.put_pod(waiting)
    assert by_pod.put_pod(running) == Dirty(limits=frozenset({"a/p"}))
    by_container = loaded(namespaced("p", "a", "1Mi", {}, "Container", False))
    by_container.put_pod(waiting)
    assert by_container.put_pod(running) == Dirty(frozenset({"n1"}), frozenset({"a/p"}))


def test_terminal_or_unbound_pod_is_removed() -> None:
    world = loaded(namespaced("p", "a", "1Mi", {}, "Pod", False))
    for last in (
        a_pod("1", "a", "n1", {}, running=True, terminal=True),
        a_pod("1", "a", "", {}, running=True, terminal=False),
    ):
        world.put_pod(a_pod("1", "a", "n1", {}, running=True, terminal=False))
        assert world.put_pod(last) == Dirty(frozenset({"n1"}), frozenset({"a/p"}))
        assert world.compiled("n1")[0].pods == []


def test_windows_pod_or_node_matches_no_limit() -> None:
    world = loaded(
        namespaced("p", "a", "1Mi", {}, "Pod", False), cluster_wide("u", "1Mi", {}, {}, {}, None)
    )
    world.put_pod(a_pod("1", "a", "n1", {}, running=True, terminal=False, windows=True))
    assert world.pods_of("a/p") == world.pods_of("u") == []
    world.put_pod(a_pod("2", "a", "n3", {}, running=True, terminal=False))
    assert len(world.pods_of("a/p")) == len(world.pods_of("u")) == 1
    world.put_node(Node("n3", {"kubernetes.io/os": "windows"}))
    assert world.pods_of("a/p") == world.pods_of("u") == []


def test_recreated_pod_of_same_name_is_another_pod() -> None:
    world = loaded(namespaced("p", "a", "1Mi", {}, "Pod", False))
    old = Pod("a", "db-0", "1", "1", "n1")
    world.put_pod(old)
    world.put_pod(Pod("a", "db-0", "2", "2", "n2"))
    world.remove_pod(old.uid)
    assert [pod.uid for pod in world.pods_of("a/p")] == ["2"]


def test_status_write_dirties_nothing_and_recreated_limit_does() -> None:
    limit = namespaced("p", "a", "1Mi", {}, "Pod", False)
    world = loaded(limit)
    world.put_pod(a_pod("1", "a", "n1", {}, running=True, terminal=False))
    written = limit.model_copy(update={"status": {"matchedPods": 1}})
    assert world.put_limit(written) == CLEAN
    assert world.limits["a/p"] is written
    metadata = limit.metadata.model_copy(update={"uid": "other"})
    assert world.put_limit(limit.model_copy(update={"metadata": metadata})).nodes == {"n1"}


def test_unknown_node_has_no_spec() -> None:
    with pytest.raises(KeyError):
        Cluster().compiled("n1")


def test_similar_pods_share_labels() -> None:
    one, two = (a_pod(uid, "a", "n1", {"app": "x"}, running=True, terminal=False) for uid in "12")
    assert one.labels is two.labels
    assert one == Pod("a", "pod-1", "1", "1", "n1", {"app": "x"}, {"main": "id-1"})


@pytest.mark.rule("P14")
def test_ceiling_that_allows_a_grant_dirties_the_grant() -> None:
    world = loaded(
        namespaced("p", "a", "1Mi", {}, "Pod", True), namespaced("q", "b", "1Mi", {}, "Pod", True)
    )
    world.put_pod(a_pod("1", "a", "n1", {}, running=True, terminal=False))
    ceiling = cluster_wide("u", "1Gi", {}, NAMED[0], {}, "1Mi")
    assert world.put_limit(ceiling) == Dirty(frozenset({"n1"}), frozenset({"u", "a/p"}))
    assert world.remove_limit("u") == Dirty(frozenset({"n1"}), frozenset({"u", "a/p"}))
