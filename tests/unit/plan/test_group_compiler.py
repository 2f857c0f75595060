"""The groups of a node follow from groups and pods; the index answers the same after any events."""

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import NodeGroup, NodePinConfigSpec
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.plan.cluster import Cluster
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.dirty import CLEAN, Dirty
from pinwarden.plan.fairness import select_fairly
from pinwarden.plan.group_compiler import (
    MAX_NODE_GROUP_BYTES,
    MAX_NODE_GROUPS,
    NOWHERE,
    Group,
    Presence,
    admissions,
)
from pinwarden.plan.limit_compiler import LimitSettings
from pinwarden.plan.node_spec import compile_node
from pinwarden.plan.types import Namespace, Node, Pod

from .scopes import changed_nodes, is_rescoped

NODES = ["n1", "n2"]
ALLOWED = ["", "path:/run/a", "create:1Mi", "create:2Mi path:/run"]
MEMFD: dict[str, Any] = {"backing": {"memfd": {"name": "ring"}}}
ABSENT = {"key": "a", "operator": "DoesNotExist"}
SPECS: list[dict[str, Any]] = [
    MEMFD,
    {"backing": {"tmpfs": {"path": "/run/a/b"}}},
    {"backing": {"tmpfs": {}}, "management": "Create", "capacity": "1Mi"},
    {**MEMFD, "deletionPolicy": "Orphan"},
]
SELECTORS = [{}, {"matchLabels": {"tier": "x"}}, {"matchLabels": {"tier": "y"}}]


def a_group(
    name: str = "g",
    namespace: str = "a",
    *,
    spec: dict[str, Any] = MEMFD,
    members: Any = None,
    version: str = "1",
    **of: Any,
) -> Group:
    members = [{"podSelector": {}}] if members is None else members
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
        "resourceVersion": version,
    }
    resource = SharedMemoryGroup.model_validate(
        {"metadata": metadata, "spec": {"members": members, **spec}}
    )
    return Group(resource, **of)


def a_pod(uid: str, namespace: str = "a", node: str = "n1", tier: str = "x", **fields: Any) -> Pod:
    return Pod(
        namespace,
        f"pod-{uid}",
        uid,
        f"cgroup-{uid}",
        node,
        {"tier": tier},
        {"main": "id"},
        **fields,
    )


def compiled(*groups: Group, pods: list[Pod], allowed: str = "", **more: Any) -> list[NodeGroup]:
    namespaces = {"a": Namespace("a", allowed=allowed)}
    return compile_node(Node("n1"), pods, namespaces, [], LimitSettings(), groups, **more).groups


# -- the rules ---------------------------------


@pytest.mark.rule("M2")
def test_group_has_selected_pods_of_own_namespace_as_members() -> None:
    members = [
        {
            "podSelector": {"matchLabels": {"tier": "x"}},
            "borrowLimit": "1Mi",
            "borrowLimitOn": "Resident",
        },
        {"podSelector": {}, "borrowLimit": "4Mi"},
    ]
    group = a_group(spec={**MEMFD, "accounting": "Borrow"}, members=members)
    pods = [
        a_pod("2"),
        a_pod("1"),
        a_pod("3", tier="y"),
        a_pod("4", namespace="b"),
        a_pod("5", terminal=True),
    ]
    (result,) = compiled(group, pods=pods)
    assert [member.pods for member in result.members] == [
        ["1", "2", "cgroup-1", "cgroup-2"],
        ["1", "2", "3", "cgroup-1", "cgroup-2", "cgroup-3"],
    ]
    assert [(member.borrow_limit, member.borrow_limit_on) for member in result.members] == [
        (1 << 20, "Resident"),
        (4 << 20, "Mapped"),
    ]
    assert result.fair_share == "Borrow"
    assert compiled(group, pods=pods[3:]) == []


@pytest.mark.rule("M1", "M9")
def test_unreleased_group_stays_without_member() -> None:
    group = a_group()
    assert compiled(group, pods=[], presence=NOWHERE) == []
    assert compiled(group, pods=[], presence=Presence(requested=frozenset({group.uid}))) == []
    (result,) = compiled(group, pods=[], presence=Presence(unreleased=frozenset({group.uid})))
    assert not result.pods()


@pytest.mark.rule("M10")
def test_draining_group_stays_on_its_nodes_without_member() -> None:
    group = a_group(deleting=True)
    requested = Presence(requested=frozenset({group.uid}))
    (result,) = compiled(group, pods=[], presence=requested)
    assert result.draining
    orphaned = a_group(spec={**MEMFD, "deletionPolicy": "Orphan"}, deleting=True)
    assert compiled(orphaned, pods=[], presence=requested) == []


@pytest.mark.rule("M10")
def test_draining_group_without_finalizer_is_on_no_node() -> None:
    assert compiled(a_group(has_finalizer=False), pods=[a_pod("1")]) == []
    assert compiled(
        a_group(spec={**MEMFD, "deletionPolicy": "Orphan"}, has_finalizer=False), pods=[a_pod("1")]
    )


@pytest.mark.parametrize(
    ("spec", "members", "reason", "field"),
    [
        (
            MEMFD,
            [{"podSelector": {}, "pinLimit": "1Mi"}],
            "NotSupported",
            "spec.members[0].pinLimit",
        ),
        ({**MEMFD, "capacity": "-1"}, None, "Invalid", "spec.capacity"),
        ({**MEMFD, "capacity": "5Pi"}, None, "Invalid", "spec.capacity"),
        (
            MEMFD,
            [{"podSelector": {}, "borrowLimit": "1m"}],
            "Invalid",
            "spec.members[0].borrowLimit",
        ),
        ({"backing": {}}, None, "Invalid", "spec.backing"),
        (
            MEMFD,
            [
                {"podSelector": {}},
                {"podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [ABSENT]}},
            ],
            "SelectsNothing",
            "spec.members[1].podSelector",
        ),
        ({"backing": {"tmpfs": {}}, "management": "Create"}, None, "Invalid", "spec.capacity"),
        ({"backing": {"tmpfs": {"path": "/run"}}}, None, "NotAllowed", "spec.backing.tmpfs.path"),
    ],
)
def test_invalid_group_is_rejected(spec: Any, members: Any, reason: str, field: str) -> None:
    group = a_group(spec=spec, members=members)
    result = admissions([group], Namespace("a"))["a/g"]
    assert isinstance(result, Rejection)
    assert result.reason == reason
    assert result.message.startswith(field)
    assert compiled(group, pods=[a_pod("1")]) == []


def test_groups_of_a_namespace_crowd_out_no_other_and_oldest_come_first() -> None:
    many = [
        a_group(f"g{number}", created=f"2024-{number:04}") for number in range(MAX_NODE_GROUPS + 5)
    ]
    late = a_group("late", "b", created="2025")
    result = compiled(*many, late, pods=[a_pod("1"), a_pod("2", namespace="b")])
    assert len(result) == MAX_NODE_GROUPS
    assert [group.name for group in result] == [
        f"a/g{number}" for number in range(MAX_NODE_GROUPS - 1)
    ] + ["b/late"]


@pytest.mark.rule("H1")
def test_groups_of_a_node_fit_whatever_one_namespace_has() -> None:
    many = [
        a_group(f"g{number}", members=[{"podSelector": {}}] * 16, created=f"2024-{number:04}")
        for number in range(60)
    ]
    others = [a_group(f"late{number}", "b", created=f"2025-{number}") for number in range(5)]
    pods = [a_pod(f"{number:040}") for number in range(30)]
    result = compiled(*many, *others, pods=[*pods, a_pod("1", namespace="b")])
    wire = json.dumps([group.to_wire() for group in result], separators=(",", ":"))
    assert MAX_NODE_GROUP_BYTES * 0.8 < len(wire) <= MAX_NODE_GROUP_BYTES
    assert [group.name for group in result[-5:]] == [group.name for group in others]
    assert [group.name for group in result[:-5]] == [
        group.name for group in many[: len(result) - 5]
    ]


def test_fair_selection_prefers_smallest_namespace_and_skips_too_large_names() -> None:
    sizes = {"a/1": 50, "a/2": 30, "a/3": 10, "b/1": 40, "b/2": 5, "c/1": 200, "d/1": 10}
    assert select_fairly(list(sizes), 1000, sizes) == set(sizes)
    assert select_fairly(list(sizes), 105, sizes) == {"d/1", "b/1", "b/2", "a/1"}
    assert select_fairly(list(sizes), 100, sizes) == {"d/1", "b/1", "b/2", "a/2", "a/3"}
    assert select_fairly(["a/1", "a/2", "a/3", "b/1", "cluster"], 3) == {"cluster", "a/1", "b/1"}


@pytest.mark.rule("M10")
def test_rejected_group_drains_where_present_and_comes_to_no_other_node() -> None:
    created = {"backing": {"tmpfs": {}}, "management": "Create", "capacity": "2Mi"}
    group = a_group(spec=created)
    requested = Presence(requested=frozenset({group.uid}))
    pods = [a_pod("1")]
    (result,) = compiled(group, pods=pods, presence=requested, allowed="create:2Mi")
    assert not result.draining
    (result,) = compiled(group, pods=pods, presence=requested, allowed="create:1Mi")
    assert (result.draining, result.capacity, result.pods()) == (
        True,
        2 << 20,
        frozenset({"1", "cgroup-1"}),
    )
    assert compiled(group, pods=pods, allowed="create:1Mi") == []
    for never in (
        replace(group, has_finalizer=False),
        a_group(spec={**created, "deletionPolicy": "Orphan"}),
    ):
        assert compiled(never, pods=pods, presence=requested, allowed="create:1Mi") == []


@pytest.mark.parametrize("amount", ["-1", "5Pi", "1500m"])
def test_rejected_group_drains_without_its_rejected_fields(
    amount: str,
) -> None:
    members = [{"podSelector": {}, "borrowLimit": amount}]
    group = a_group(
        spec={"backing": {"tmpfs": {"path": "/run/a"}}, "capacity": amount}, members=members
    )
    requested = Presence(requested=frozenset({group.uid}))
    (result,) = compiled(group, pods=[], presence=requested, allowed="path:/run/a")
    assert (result.draining, result.allowed, result.capacity) == (True, None, None)
    assert result.members[0].borrow_limit is None


# -- in any order ---------------------------------

PODS = st.builds(
    a_pod,
    st.sampled_from("1234"),
    st.sampled_from("aab"),
    st.sampled_from(["", *NODES, *NODES]),
    st.sampled_from("xy"),
    terminal=st.sampled_from([False, False, False, True]),
    windows=st.sampled_from([False, False, False, True]),
)
GROUPS = st.builds(
    a_group,
    st.sampled_from("gh"),
    st.sampled_from("aab"),
    spec=st.sampled_from(SPECS),
    members=st.lists(
        st.sampled_from(SELECTORS).map(lambda selector: {"podSelector": selector}),
        min_size=1,
        max_size=2,
    ),
    created=st.sampled_from("12"),
    deleting=st.booleans(),
    has_finalizer=st.sampled_from([True, True, False]),
)
UIDS = st.frozensets(st.sampled_from(["uid-a-g", "uid-a-h", "uid-b-g"]))


@given(
    st.lists(GROUPS, max_size=4), st.lists(PODS, max_size=4), st.sampled_from(ALLOWED), st.randoms()
)
def test_group_spec_does_not_depend_on_input_order(
    groups: list[Group], pods: list[Pod], allowed: str, random: Random
) -> None:
    groups = list({group.name: group for group in groups}.values())
    pods = list({pod.uid: pod for pod in pods if pod.node == "n1"}.values())
    once = compiled(*groups, pods=pods, allowed=allowed)
    random.shuffle(groups)
    random.shuffle(pods)
    assert compiled(*groups, pods=pods, allowed=allowed) == once


class Mirror:
    """The same objects in plain dictionaries, with every answer computed from scratch."""

    def __init__(self) -> None:
        self.world = Cluster()
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.groups: dict[str, Group] = {}
        self.presences: dict[str, Presence] = {}

    def specs(self) -> dict[str, NodePinConfigSpec]:
        return {
            name: compile_node(
                node,
                [pod for pod in self.pods.values() if pod.node == name],
                self.namespaces,
                [],
                LimitSettings(),
                self.groups.values(),
                self.presences.get(name, NOWHERE),
            )
            for name, node in self.nodes.items()
        }

    def members(self, group: Group) -> list[Pod]:
        return [
            pod
            for pod in self.pods.values()
            if pod.node
            and not pod.terminal
            and not pod.windows
            and not (self.nodes.get(pod.node) or Node(pod.node)).windows
            and pod.namespace == group.namespace
            and group.has_member(pod.labels)
        ]

    def refusals(self) -> dict[str, Rejection | None]:
        result: dict[str, Rejection | None] = {}
        for name in "ab":
            own = [group for group in self.groups.values() if group.namespace == name]
            namespace = self.namespaces.get(name) or Namespace(name)
            for group, standing in admissions(own, namespace).items():
                result[group] = standing if isinstance(standing, Rejection) else None
        return result

    def check(self) -> None:
        specs = self.specs()
        assert {name: self.world.compiled(name)[0] for name in self.nodes} == specs
        assert self.world.groups == self.groups
        refusals = self.refusals()
        for name, group in self.groups.items():
            result = [pod for pods in self.world.members_of(name).values() for pod in pods]
            assert sorted(pod.uid for pod in result) == sorted(
                pod.uid for pod in self.members(group)
            )
            on = {
                node
                for node, spec in specs.items()
                if any(group.name == name for group in spec.groups)
            }
            assert self.world.nodes_of_group(name) == on
            assert self.world.group_rejection(name) == refusals[name]
            assert all(name in self.world.groups_on(node) for node in on)

    def facts(self) -> dict[str, object]:
        """All input of a group's status except the reports of agents."""
        refusals = self.refusals()
        return {
            name: (
                group.resource.spec,
                group.deleting,
                sorted(
                    (pod.uid, pod.name, pod.cgroup_uid, pod.node) for pod in self.members(group)
                ),
                refusals[name],
                [
                    node
                    for node, spec in self.specs().items()
                    if any(g.name == name for g in spec.groups)
                ],
            )
            for name, group in self.groups.items()
        }


Operation = Callable[[Mirror], Dirty]


def put(kind: str, key: str, value: Any) -> Operation:
    """Put a pod, a group, a node or a namespace."""

    def run(mirror: Mirror) -> Dirty:
        getattr(mirror, f"{kind}s")[key] = value
        dirty: Dirty = getattr(mirror.world, f"put_{kind}")(value)
        return dirty

    return run


def remove(kind: str, key: str) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        getattr(mirror, f"{kind}s").pop(key, None)
        dirty: Dirty = getattr(mirror.world, f"remove_{kind}")(key)
        return dirty

    return run


def put_presence(node: str, unreleased: frozenset[str], requested: frozenset[str]) -> Operation:
    def run(mirror: Mirror) -> Dirty:
        mirror.presences[node] = Presence(unreleased, requested)
        return mirror.world.put_presence(node, mirror.presences[node])

    return run


def put_node(name: str, os: str = "linux") -> Operation:
    return put("node", name, Node(name, {"kubernetes.io/os": os}))


def put_namespace(name: str, allowed: str) -> Operation:
    return put("namespace", name, Namespace(name, allowed=allowed))


OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    PODS.map(lambda pod: put("pod", pod.uid, pod)),
    GROUPS.map(lambda group: put("group", group.name, group)),
    st.builds(put_namespace, st.sampled_from("ab"), st.sampled_from(ALLOWED)),
    st.builds(put_presence, st.sampled_from(NODES), UIDS, UIDS),
    st.builds(remove, st.just("pod"), st.sampled_from("1234")),
    st.builds(remove, st.just("group"), st.sampled_from(["a/g", "a/h", "b/g"])),
    st.builds(remove, st.just("namespace"), st.sampled_from("ab")),
    st.builds(put_node, st.sampled_from(NODES), st.sampled_from(["linux", "windows"])),
    st.builds(remove, st.just("node"), st.sampled_from(NODES)),
)


@given(st.lists(OPERATIONS, min_size=1, max_size=14))
def test_group_index_after_any_events_equals_compilation_from_scratch(
    operations: list[Operation],
) -> None:
    mirror = Mirror()
    for operation in [*(put_node(name) for name in NODES), *operations]:
        operation(mirror)
        mirror.check()


_GOING = a_group(
    members=[{"podSelector": {"matchLabels": {"tier": "x"}}}], deleting=True, has_finalizer=True
)


@example(
    [
        put("pod", "2", a_pod("2", tier="y")),
        put("group", "a/g", _GOING),
        put_presence("n1", frozenset(), frozenset([_GOING.uid])),
        put_node("n1", "windows"),
        put("pod", "2", a_pod("2")),
    ]
)
@given(st.lists(OPERATIONS, min_size=1, max_size=14))
def test_group_event_dirties_what_changed_and_repetition_nothing(
    operations: list[Operation],
) -> None:
    mirror = Mirror()
    for operation in [*(put_node(name) for name in NODES), *operations]:
        specs, facts = mirror.specs(), mirror.facts()
        dirty = operation(mirror)
        now = mirror.specs()
        assert changed_nodes(specs, now) <= dirty.nodes
        assert is_rescoped(specs, now) <= dirty.all_nodes
        assert dirty.nodes <= set(now)
        changed = {name for name, fact in mirror.facts().items() if facts.get(name) != fact}
        assert changed | (set(facts) - set(mirror.groups)) <= dirty.groups
        assert operation(mirror) == CLEAN


def test_pod_of_namespace_without_groups_concerns_no_group() -> None:
    world = Cluster()
    world.put_node(Node("n1"))
    world.put_group(a_group(namespace="b"))
    assert world.put_pod(a_pod("1")).groups == frozenset()
    assert world.put_pod(a_pod("2", namespace="b")).groups == {"b/g"}


def test_pod_on_windows_node_is_no_member() -> None:
    world = Cluster()
    world.put_group(a_group())
    world.put_pod(a_pod("1"))
    assert world.members_of("a/g").keys() == {"n1"}
    assert world.put_node(Node("n1", {"kubernetes.io/os": "windows"})).groups == {"a/g"}
    assert not world.members_of("a/g")
    assert not world.nodes_of_group("a/g")


def test_group_status_write_dirties_nothing() -> None:
    world = Cluster()
    world.put_node(Node("n1"))
    world.put_group(a_group())
    newer = a_group(version="2")
    assert world.put_group(newer) == CLEAN
    assert world.groups["a/g"] is newer
    assert world.put_group(replace(newer, deleting=True)).groups == {"a/g"}


@pytest.mark.rule("M2")
def test_group_does_not_reach_contested_cgroup() -> None:
    thief = replace(a_pod("1"), cgroup_uid="h")
    victim = replace(a_pod("2", "b"), cgroup_uid="h")
    (result,) = compiled(a_group(), pods=[thief, victim])
    assert result.pods() == {"1"}
    (result,) = compiled(a_group(), pods=[thief])
    assert result.pods() == {"1", "h"}


def test_group_has_only_listed_pods_of_a_full_node() -> None:
    """https://github.com/virtual-kubelet/virtual-kubelet/issues/809"""
    pods = [
        Pod("a", f"pod-{n}", f"{n:05}", f"{n:05}", "n1", {"tier": "x"}, {"main": "id"})
        for n in range(4200)
    ]
    spec = compile_node(Node("n1"), pods, {}, [], LimitSettings(), [a_group()])
    assert len(spec.pods) == 4096
    assert spec.groups[0].pods() == {pod.uid for pod in spec.pods}
