"""The spec of a node follows from the limits and its pods alone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.plan.limit_compiler import MAX_POD_LIMITS, Limit, LimitSettings, rejection
from pinwarden.plan.node_spec import MAX_NODE_LIMITS, compile_node
from pinwarden.plan.types import Namespace, Node, Pod

NODE = Node("n1", {"pool": "gpu"})
MIB = 2**20


def pinlimit(name: str, amount: str = "64Mi", namespace: str = "a", **spec: Any) -> PinLimit:
    return PinLimit.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}"},
            "spec": {"podSelector": {}, "limit": amount, **spec},
        }
    )


def ceiling(name: str, limit: str = "1Gi", **spec: Any) -> ClusterPinLimit:
    return ClusterPinLimit.model_validate(
        {"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": {"limit": limit, **spec}}
    )


def pod(uid: str, namespace: str = "a", **labels: str) -> Pod:
    return Pod(
        namespace, f"pod-{uid}", uid, uid, NODE.name, labels, {"main": "id-" + uid, "side": None}
    )


def limit_names(
    limits: list[Limit], *pods: Pod, node: Node = NODE, settings: LimitSettings | None = None
) -> dict[str, list[str]]:
    namespaces = {"a": Namespace("a", {"team": "red"}), "kube-system": Namespace("kube-system")}
    spec = compile_node(node, pods, namespaces, limits, settings or LimitSettings())
    assert {name for entry in spec.pods for name in entry.limits} == {
        limit.name for limit in spec.limits
    }
    return {entry.uid: entry.limits for entry in spec.pods}


def test_spec_lists_every_pod_also_without_limits() -> None:
    limits: list[Limit] = [pinlimit("db", podSelector={"matchLabels": {"app": "db"}})]
    assert limit_names(
        limits, pod("u1", app="db"), pod("u2", app="web"), pod("u3", "b", app="db")
    ) == {
        "u1": ["a/db"],
        "u2": [],
        "u3": [],
    }


@pytest.mark.rule("P13")
def test_pod_with_several_limits_has_all_also_audit() -> None:
    limits: list[Limit] = [
        pinlimit("x", "64Mi"),
        pinlimit("y", "32Mi", enforcement="Audit"),
        ceiling("top"),
    ]
    assert limit_names(limits, pod("u1")) == {"u1": ["a/x", "a/y", "top"]}


def test_ceiling_matches_by_namespace_and_node() -> None:
    red = ceiling("red", namespaceSelector={"matchLabels": {"team": "red"}})
    gpu = ceiling(
        "gpu",
        nodeSelector={"matchExpressions": [{"key": "pool", "operator": "In", "values": ["gpu"]}]},
    )
    assert limit_names([red, gpu], pod("u1"), pod("u2", "b")) == {
        "u1": ["gpu", "red"],
        "u2": ["gpu"],
    }
    assert limit_names([red, gpu], pod("u1"), node=Node("n2")) == {"u1": ["red"]}


def test_system_namespace_is_exempt_unless_named() -> None:
    named = ceiling(
        "named", namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    )
    broad = ceiling(
        "broad",
        namespaceSelector={"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]},
    )
    assert limit_names([named, broad, ceiling("all")], pod("u1", "kube-system")) == {
        "u1": ["named"]
    }


@pytest.mark.rule("P14")
@pytest.mark.parametrize(
    ("ceilings", "granted"),
    [([], 0), (["16Mi"], 16), (["16Mi", "48Mi"], 48), (["1Gi"], 64)],
    ids=str,
)
def test_namespace_grant_is_bounded_by_max_grant_of_ceilings(
    ceilings: list[str], granted: int
) -> None:
    tops: list[Limit] = [ceiling(f"top{i}", maxGrant=amount) for i, amount in enumerate(ceilings)]
    spec = compile_node(
        NODE, [pod("u1")], {}, [pinlimit("g", "64Mi", grant=True), *tops], LimitSettings()
    )
    (grant,) = [limit for limit in spec.limits if limit.uid == "uid-a-g"]
    assert grant.grant == granted * MIB
    assert grant.limit == 64 * MIB, "a clipped grant is still a limit"


@pytest.mark.rule("P14")
def test_limit_without_grant_raises_nothing_and_ceiling_grant_needs_no_max_grant() -> None:
    spec = compile_node(
        NODE, [pod("u1")], {}, [pinlimit("x"), ceiling("top", grant=True)], LimitSettings()
    )
    assert {limit.name: limit.grant for limit in spec.limits} == {"a/x": None, "top": 1024 * MIB}


@pytest.mark.rule("P14")
def test_pods_with_different_grants_have_own_amounts() -> None:
    some = ceiling("some", maxGrant="16Mi", podSelector={"matchLabels": {"tier": "one"}})
    spec = compile_node(
        NODE,
        [pod("u1", tier="one"), pod("u2")],
        {},
        [pinlimit("g", grant=True), some],
        LimitSettings(),
    )
    grants = {limit.name: limit.grant for limit in spec.limits}
    assert [
        [grants[name] for name in entry.limits if name.startswith("a/")] for entry in spec.pods
    ] == [
        [16 * MIB],
        [0],
    ]


def test_container_ids_are_listed_only_for_limits_per_container() -> None:
    scoped = pinlimit(
        "c", scope="Container", containers=["main"], podSelector={"matchLabels": {"app": "db"}}
    )
    spec = compile_node(NODE, [pod("u1", app="db"), pod("u2")], {}, [scoped], LimitSettings())
    assert [[(c.name, c.id) for c in entry.containers] for entry in spec.pods] == [
        [("main", "id-u1"), ("side", None)],
        [],
    ]


@pytest.mark.parametrize(
    "spec",
    [
        {"counting": "OncePerPod"},
        {"onOvershoot": "Kill"},
        {"limit": "-1"},
        {"limit": "1m"},
        {"limit": "100E"},
        {"grant": True, "sources": ["Rdma"]},
    ],
    ids=str,
)
def test_unsupported_limit_is_rejected_by_name_and_others_apply(
    spec: dict[str, Any],
) -> None:
    broken = pinlimit("broken", **spec)
    refused = rejection(broken)
    assert refused is not None
    assert refused.reason in {"NotSupported", "Invalid"}
    assert refused.message.startswith(f"spec.{list(spec)[-1]}: ")
    assert limit_names([broken, pinlimit("good")], pod("u1")) == {"u1": ["a/good"]}


APART = {
    "matchExpressions": [
        {"key": "app", "operator": "In", "values": ["a", "b"]},
        {"key": "app", "operator": "In", "values": ["c"]},
    ]
}


@pytest.mark.parametrize(
    ("limit", "field"),
    [
        (pinlimit("x", podSelector=APART), "podSelector"),
        (ceiling("x", namespaceSelector=APART), "namespaceSelector"),
        (ceiling("x", nodeSelector=APART), "nodeSelector"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limit_with_contradictory_selector_is_rejected(limit: Limit, field: str) -> None:
    refused = rejection(limit)
    assert refused is not None
    assert refused.reason == "SelectsNothing"
    assert refused.message == f"spec.{field}: no value of the label app meets all requirements"


@given(
    st.permutations([pinlimit("x"), pinlimit("y", grant=True), ceiling("t", maxGrant="8Mi")]),
    st.permutations("abc"),
)
def test_spec_does_not_depend_on_input_order(limits: list[Limit], uids: list[str]) -> None:
    spec = compile_node(NODE, [pod(uid) for uid in uids], {}, limits, LimitSettings())
    assert spec == compile_node(
        NODE, [pod(uid) for uid in sorted(uids)], {}, limits[::-1], LimitSettings()
    )


def test_many_limits_on_a_pod_crowd_out_no_ceiling_and_no_other_pod() -> None:
    many: list[Limit] = [pinlimit(f"x{i:03}") for i in range(2 * MAX_POD_LIMITS)]
    names = limit_names(
        [*many, ceiling("zz"), pinlimit("y", namespace="b")], pod("u1"), pod("u2", "b")
    )
    assert names["u1"] == [*(f"a/x{i:03}" for i in range(MAX_POD_LIMITS - 1)), "zz"]
    assert names["u2"] == ["b/y", "zz"]


def test_many_limits_on_a_node_crowd_out_no_other_namespace() -> None:
    def own(namespace: str, count: int) -> list[Limit]:
        return [
            pinlimit(
                f"x{i:04}", namespace=namespace, podSelector={"matchLabels": {"n": str(i // 30)}}
            )
            for i in range(count)
        ]

    pods = [pod(f"{namespace}{i}", namespace, n=str(i)) for namespace in "ab" for i in range(50)]
    limits = [*own("a", 1500), *own("b", 3), ceiling("zz")]
    spec = compile_node(NODE, pods, {}, limits, LimitSettings())
    names = [limit.name for limit in spec.limits]
    assert len(names) == MAX_NODE_LIMITS
    assert {"zz", "b/x0000", "b/x0001", "b/x0002"} < set(names)
    assert {name for entry in spec.pods for name in entry.limits} == set(names)


HASH = "0123456789abcdef" * 2


def mirror(uid: str, namespace: str = "a", **fields: Any) -> Pod:
    return Pod(namespace, f"pod-{uid}", uid, HASH, NODE.name, {}, {"main": f"id-{uid}"}, **fields)


@pytest.mark.rule("P1")
def test_static_pod_is_listed_with_hash_and_own_uid() -> None:
    """Whatever a kubelet does with an annotated pod, the pod's limits are listed."""
    assert limit_names([pinlimit("x")], mirror("m1")) == {HASH: ["a/x"], "m1": ["a/x"]}


@pytest.mark.rule("P13")
def test_contested_cgroup_has_limits_of_both_pods() -> None:
    """https://github.com/DataDog/datadog-agent/pull/5916"""
    limits: list[Limit] = [pinlimit("x"), pinlimit("y", namespace="b"), ceiling("top")]
    names = limit_names(limits, mirror("m1"), mirror("m2", "b"), pod("u1"))
    assert names[HASH] == ["a/x", "b/y", "top"]
    assert (names["m1"], names["m2"], names["u1"]) == (
        ["a/x", "top"],
        ["b/y", "top"],
        ["a/x", "top"],
    )


@pytest.mark.rule("P14")
def test_contested_cgroup_has_no_grant() -> None:
    limits: list[Limit] = [
        pinlimit("x"),
        pinlimit("g", namespace="b", grant=True),
        ceiling("top", maxGrant="1Gi"),
    ]
    spec = compile_node(NODE, [mirror("m1"), mirror("m2", "b")], {}, limits, LimitSettings())
    grants = {limit.name: limit.grant for limit in spec.limits}
    named = {entry.uid: entry.limits for entry in spec.pods}
    assert named[HASH] == ["a/x", "b/g@0", "top"]
    assert (grants["b/g@0"], named["m2"]) == (0, ["b/g", "top"])


@pytest.mark.rule("P13")
def test_contested_cgroup_of_many_pods_has_bounded_limits_ceilings_first() -> None:
    limits: list[Limit] = [
        *(pinlimit(f"l{number:02}", namespace=ns) for number in range(30) for ns in "ab"),
        ceiling("z"),
    ]
    names = limit_names(limits, mirror("m1"), mirror("m2", "b"))
    assert len(names[HASH]) == MAX_POD_LIMITS
    assert "z" in names[HASH]


@pytest.mark.rule("H1")
def test_container_of_contested_cgroup_has_id_only_if_all_agree() -> None:
    by_container: list[Limit] = [pinlimit("c", scope="Container")]
    spec = compile_node(NODE, [mirror("m1"), mirror("m2")], {}, by_container, LimitSettings())
    ids = {entry.uid: [container.id for container in entry.containers] for entry in spec.pods}
    assert ids == {HASH: [None], "m1": ["id-m1"], "m2": ["id-m2"]}


@pytest.mark.rule("P13")
def test_spec_entries_of_one_cgroup_are_joined() -> None:
    """An older operator lists a cgroup of two pods twice."""
    entries = [
        {
            "uid": "u1",
            "limits": ["a/x"],
            "containers": [{"name": "main", "id": "1"}, {"name": "b"}],
        },
        {"uid": "u2", "limits": []},
        {"uid": "u1", "limits": ["top", "a/x"], "containers": [{"name": "main", "id": "2"}]},
    ]
    spec, _ = NodePinConfigSpec.parse({"pods": entries})
    assert [(entry.uid, entry.limits) for entry in spec.pods] == [
        ("u1", ["a/x", "top"]),
        ("u2", []),
    ]
    assert [(container.name, container.id) for container in spec.pods[0].containers] == [
        ("main", None),
        ("b", None),
    ]
