"""Which containers get the gate at their creation."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.nri.adjustment import LABEL, NO_GATE, Decision, GateMode, Rules
from pinwarden.node.nri.governed import EnforcedLimit, NodePods, parse
from pinwarden.node.nri.messages import Container, Pod
from pinwarden.node.seccomp.gated_calls import LISTENER_PATH
from pinwarden.node.seccomp.policy import Comparison, Policy, Rule

NODE = NodePods(listed=frozenset({"free", "limited"}), governed=frozenset({"limited"}))
STATIC = {"kubernetes.io/config.source": "file"}
OWN = {"app.kubernetes.io/name": "pinwarden"}
UNCONFINED = Container("id", "sandbox", "main", 1, None)


def _equal(argument: int, value: int) -> Comparison:
    return Comparison(argument, value, 0, "SCMP_CMP_EQ")


def rules(mode: GateMode = GateMode.GOVERNED) -> Rules:
    handlers = frozenset(["runc", "nvidia"])
    return Rules(mode, "pinwarden-system", "x86_64", handlers, inherited=Limits(800, UNLIMITED))


def pod(uid: str, namespace: str = "team", **fields: Any) -> Pod:
    return Pod("sandbox", "name", uid, namespace, **fields)


@pytest.mark.parametrize(
    ("uid", "gated_in"),
    [
        ("limited", {"All", "Governed", "Labelled"}),
        ("free", {"All"}),
        ("unknown", {"All", "Governed"}),
    ],
)
def test_pod_by_configuration_and_mode_is_gated(uid: str, gated_in: set[str]) -> None:
    for mode in GateMode:
        decision = rules(mode).decide(pod(uid), UNCONFINED, NODE)
        assert (decision.policy is not None) == (mode in gated_in), mode
        assert decision.wanted == (mode in gated_in)


def test_unknown_pod_is_gated_only_in_a_namespace_that_a_limit_may_select() -> None:
    def is_gated(namespace: str, mode: GateMode = GateMode.GOVERNED) -> bool:
        return rules(mode).decide(pod("unknown", namespace), UNCONFINED, node).policy is not None

    node = NodePods(limited=frozenset({"team"}))
    assert is_gated("team")
    assert not is_gated("other")
    assert is_gated("other", GateMode.ALL)
    decision = rules().decide(pod("unknown", "other"), UNCONFINED, node)
    assert (decision.wanted, decision.reason) == (False, "no limit selects pods of its namespace")
    node = NodePods(exempt=frozenset({"kube-system"}))
    assert is_gated("team")
    assert not is_gated("kube-system")
    node = NodePods(governed=frozenset({"unknown"}), limited=frozenset())
    assert is_gated("team"), "a known limit is enough"


def test_pod_with_the_label_is_gated_unless_the_configuration_lists_it_as_free() -> None:
    labelled = rules(GateMode.LABELLED)
    label = {LABEL: "enabled"}
    assert labelled.decide(pod("unknown", labels=label), UNCONFINED, NODE).wanted
    assert labelled.decide(pod("free", labels=label), UNCONFINED, NODE).wanted
    assert not rules().decide(pod("free", labels=label), UNCONFINED, NODE).wanted


@pytest.mark.parametrize("mode", GateMode)
def test_pod_of_pinwarden_in_its_own_namespace_only_is_never_gated(mode: GateMode) -> None:
    own = pod("limited", "pinwarden-system", labels=OWN)
    assert not rules(mode).decide(own, UNCONFINED, NODE).wanted
    assert rules(mode).decide(pod("limited", labels=OWN), UNCONFINED, NODE).wanted
    other = pod("limited", "pinwarden-system", labels={"app.kubernetes.io/name": "other"})
    assert rules(mode).decide(other, UNCONFINED, NODE).wanted


@pytest.mark.parametrize("mode", GateMode)
def test_pod_without_a_known_limit_does_not_wait_for_a_gate_that_is_gone(mode: GateMode) -> None:
    """The gate's own pod may need the network that such a pod brings."""
    label = {LABEL: "enabled"}
    unknown = rules(mode).decide(pod("unknown", labels=label), UNCONFINED, NODE, gate_runs=False)
    assert unknown == Decision(None, wanted=True, reason=NO_GATE)
    assert rules(mode).decide(pod("limited"), UNCONFINED, NODE, gate_runs=False).policy


@pytest.mark.parametrize(
    ("annotations", "may"),
    [
        ({}, False),
        ({"k/other": "true", "x/k": "true"}, False),
        ({"k": "true"}, True),
        ({"k": "1"}, True),
        ({"k": "yes"}, False),
        ({"k": ""}, False),
        ({"k": "false", "k/pod": "true"}, True),
        ({"k": "true", "k/pod": "false"}, False),
        ({"k/pod": "true", "k/container.main": "false"}, False),
        ({"k/container.main": "true"}, True),
        ({"k/container.other": "true"}, False),
    ],
)
def test_container_may_start_ungated_by_the_annotations_that_containerd_reads(
    annotations: dict[str, str], may: bool
) -> None:
    pinned = Rules(GateMode.ALL, "pinwarden-system", "x86_64", toleration="k")
    annotated = pod("limited", annotations=annotations)
    assert pinned.may_start_ungated(annotated, UNCONFINED) == may
    assert rules().may_start_ungated(annotated, UNCONFINED)


@pytest.mark.parametrize("mode", GateMode)
def test_static_pod_is_gated_only_with_a_limit(mode: GateMode) -> None:
    assert not rules(mode).decide(pod("unknown", annotations=STATIC), UNCONFINED, NODE).wanted
    assert rules(mode).decide(pod("limited", annotations=STATIC), UNCONFINED, NODE).wanted
    api = {"kubernetes.io/config.source": "api"}
    assert rules(GateMode.ALL).decide(pod("unknown", annotations=api), UNCONFINED, NODE).wanted


@pytest.mark.parametrize("mode", GateMode)
def test_released_node_gates_nothing(mode: GateMode) -> None:
    assert not rules(mode).decide(pod("limited"), UNCONFINED, NodePods(release=True)).wanted


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (Policy("SCMP_ACT_ALLOW", listener_path="/run/other.sock"), "listener of its own"),
        (Policy("SCMP_ACT_ERRNO", default_errno=38), "default errno"),
        (Policy("SCMP_ACT_TRACE"), "a tracer"),
        (Policy("SCMP_ACT_ALLOW", (Rule(("mlock",), "SCMP_ACT_TRACE"),)), "mlock to a tracer"),
        (Policy("SCMP_ACT_ALLOW", architectures=("SCMP_ARCH_x86",)), "SCMP_ARCH_x86"),
        (
            Policy(
                "SCMP_ACT_ALLOW",
                (Rule(("socket",), "SCMP_ACT_ERRNO", (_equal(0, 17),), 1),),
                ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
            ),
            "conditions on socket",
        ),
        (
            Policy(
                "SCMP_ACT_ALLOW",
                tuple(
                    Rule(("socket",), "SCMP_ACT_ERRNO", (_equal(argument, value),), 1)
                    for argument, value in ((0, 40), (1, 3), (2, 255))
                ),
            ),
            "too complex",
        ),
        (
            Policy(
                "SCMP_ACT_ALLOW",
                tuple(
                    Rule(("personality",), "SCMP_ACT_ERRNO", (_equal(0, value << 32),), 1)
                    for value in range(500)
                ),
            ),
            "too long",
        ),
    ],
)
def test_ungateable_policy_stays_and_its_reason_is_given(own: Policy, reason: str) -> None:
    container = Container("id", "sandbox", "main", 1, own)
    decision = rules().decide(pod("limited"), container, NODE)
    assert decision.wanted
    assert decision.policy is None
    assert reason in decision.reason


def test_pod_of_a_runtime_with_its_own_kernel_stays_and_says_so() -> None:
    decision = rules().decide(pod("limited", handler="kata"), UNCONFINED, NODE)
    assert decision.wanted
    assert decision.policy is None
    assert "kata" in decision.reason
    assert rules().decide(pod("limited", handler="nvidia"), UNCONFINED, NODE).policy


def test_pod_with_a_profile_of_pinwarden_is_not_called_ungated() -> None:
    own = Container(
        "id", "sandbox", "main", 1, Policy("SCMP_ACT_ALLOW", listener_path=LISTENER_PATH)
    )
    decision = rules().decide(pod("limited"), own, NODE)
    assert (decision.policy, decision.wanted) == (None, False)


def test_gated_policy_names_the_holders_socket() -> None:
    policy = rules().decide(pod("limited"), UNCONFINED, NODE).policy
    assert policy is not None
    assert policy.listener_path == LISTENER_PATH


def test_configuration_with_limits_and_groups_names_governed_pods() -> None:
    spec = {
        "pods": [{"uid": "a", "limits": ["x"]}, {"uid": "b"}, {"uid": "c", "limits": []}],
        "groups": [{"members": [{"pods": ["b", "d"]}]}, {}],
    }
    node = parse({"uid": "u", "generation": 1, "spec": spec})
    assert node == NodePods(frozenset("abcd"), frozenset("abd"))
    assert (node.smallest_limit("a", "main"), node.smallest_limit("new", "main")) == (None, None)
    assert parse({"spec": {"mode": "Release", **spec}}) == NodePods(release=True)
    assert parse({"spec": {}}) == NodePods()
    namespaces = {"limitedNamespaces": ["a"], "exemptNamespaces": ["b"]}
    assert parse({"spec": namespaces}) == NodePods(limited=frozenset("a"), exempt=frozenset("b"))


LIMITS: list[Any] = [
    {"name": "pod", "limit": 900, "scope": "Pod", "enforcement": "Enforce", "containers": []},
    {"name": "main", "limit": 500, "scope": "Container", "containers": ["main", "init"]},
    {"name": "node", "limit": 700, "scope": "Node", "counting": "EveryPin", "sources": []},
    {"name": "zero", "limit": 0},
    {"name": "audit", "limit": 1, "enforcement": "Audit"},
    {"name": "pages", "limit": 1, "counting": "OncePerPod"},
    {"name": "sources", "limit": 1, "sources": ["Mlock"]},
    {"name": "host", "limit": 1, "cgroupPattern": "system.slice/*"},
    {"name": "later", "limit": "1Mi"},
    {"name": "negative", "limit": -1},
    {"name": ["x"], "limit": 1},
    {"name": "names", "limit": 1, "containers": [["x"]]},
    "other",
]


@pytest.mark.parametrize(
    ("names", "container", "smallest"),
    [
        (["pod"], "main", 900),
        (["pod", "main"], "main", 500),
        (["pod", "main"], "side", 900),
        (["main"], "side", None),
        (["pod", "main", "node"], "side", 700),
        (["pod", "zero"], "side", 0),
        (["audit", "pages", "sources", "host", "later", "negative", "names", "gone"], "main", None),
    ],
)
def test_smallest_enforced_limit_of_a_container(
    names: list[str], container: str, smallest: int | None
) -> None:
    pods = [{"uid": "limited", "limits": names}, {"uid": "free"}]
    node = parse({"spec": {"limits": LIMITS, "pods": pods, "unknownPods": 300}})
    assert node.smallest_limit("limited", container) == smallest
    assert node.smallest_limit("free", container) is None
    assert node.smallest_limit("new", container) == 300


LIMITED = NodePods(
    NODE.listed, NODE.governed, limits={"limited": (EnforcedLimit(500, frozenset()),)}, unknown=300
)


@pytest.mark.rule("P14")
@pytest.mark.parametrize(
    ("amount", "lowered"),
    [(500, Limits(500, 500)), (800, Limits(800, 800)), (900, Limits(800, 900)), (0, Limits(0, 0))],
)
def test_limits_of_a_container_are_only_lowered(amount: int, lowered: Limits) -> None:
    node = NodePods(
        frozenset("p"), frozenset("p"), limits={"p": (EnforcedLimit(amount, frozenset()),)}
    )
    assert rules().memlock(pod("p"), UNCONFINED, node, gated=True) == lowered
    limited = Rules(GateMode.GOVERNED, "", "x86_64", inherited=Limits(0, 0))
    assert limited.memlock(pod("p"), UNCONFINED, node, gated=True) is None


def test_limits_of_excluded_pods_and_of_other_kernels_stay() -> None:
    own = pod("limited", "pinwarden-system", labels=OWN)
    container = Container("id", "sandbox", "main", 1, None, memlock=Limits(900, 900))
    assert rules().memlock(pod("limited"), UNCONFINED, LIMITED, gated=False) == Limits(500, 500)
    assert rules().memlock(pod("unknown"), UNCONFINED, LIMITED, gated=False) == Limits(300, 300)
    assert (
        rules(GateMode.LABELLED).memlock(pod("unknown"), UNCONFINED, LIMITED, gated=False) is None
    )
    assert rules().memlock(pod("free"), UNCONFINED, LIMITED, gated=False) is None
    assert rules().memlock(pod("limited"), container, LIMITED, gated=False) is None
    assert rules().memlock(own, UNCONFINED, LIMITED, gated=False) is None
    assert rules().memlock(pod("limited", handler="kata"), UNCONFINED, LIMITED, gated=False) is None
    assert (
        rules().memlock(pod("unknown", annotations=STATIC), UNCONFINED, LIMITED, gated=False)
        is None
    )
    assert rules().memlock(pod("limited"), UNCONFINED, NodePods(release=True), gated=False) is None


@pytest.mark.rule("P5")
def test_limits_of_a_gated_container_stay_while_its_pod_is_unknown() -> None:
    assert rules().memlock(pod("unknown"), UNCONFINED, LIMITED, gated=True) is None
    assert rules().memlock(pod("limited"), UNCONFINED, LIMITED, gated=True) is not None


def test_limits_of_an_ungateable_container_are_lowered() -> None:
    assert rules().memlock(pod("limited"), UNCONFINED, LIMITED, gated=False) == Limits(500, 500)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["uid", "limits", "pods"]), inner)
    ),
    max_leaves=8,
)


@given(JSON, JSON, JSON)
def test_any_other_spec_is_a_value_error(pods: object, groups: object, names: object) -> None:
    lists = {"limits": names, "limitedNamespaces": names, "exemptNamespaces": names}
    try:
        node = parse({"spec": {"pods": pods, "groups": groups, **lists}})
    except ValueError:
        return
    assert node.governed <= node.listed
