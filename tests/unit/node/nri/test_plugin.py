"""The plugin on a connection, with a runtime that speaks the protocol over a socket pair."""

import socket
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import pytest

from pinwarden.common.guard import Guard
from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.nri import messages
from pinwarden.node.nri.adjustment import NO_GATE, GateMode, Rules
from pinwarden.node.nri.governed import EnforcedLimit, NodePods
from pinwarden.node.nri.memlock import ANNOTATION
from pinwarden.node.nri.plugin import KINDS, Plugin
from pinwarden.node.nri.protocol import PLUGIN, REQUEST, RESPONSE, RUNTIME, Decoder, Message, encode
from pinwarden.node.nri.wire import Fields
from pinwarden.node.nri.wire import encode as message
from pinwarden.node.seccomp.gated_calls import LISTENER_PATH
from pinwarden.node.state.nri_status import MOST_LOWERED, LoweredLimits

KEY = "example.org/start-ungated"
MIB = 1 << 20
INHERITED = Limits(8 * MIB, 64 * MIB)
APPLIED = Limits(MIB, MIB)
LIMITED = NodePods(
    frozenset(["limited"]),
    frozenset(["limited"]),
    limits={"limited": (EnforcedLimit(MIB, frozenset()),)},
)
MEMLOCK = {1: "RLIMIT_MEMLOCK", 2: MIB, 3: MIB}
POLICY = {1: "SCMP_ACT_ERRNO", 7: [message({1: ["mlock", "read"], 2: "SCMP_ACT_ALLOW"})]}


class Runtime:
    """The runtime's end of a connection."""

    def __init__(self, toleration: str = "") -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(5)
        self.guard = Guard(KINDS)
        rules = Rules(
            GateMode.GOVERNED,
            "pinwarden-system",
            "x86_64",
            toleration=toleration,
            inherited=INHERITED,
        )
        self.gate_runs = True
        self.lowered: OrderedDict[str, LoweredLimits] = OrderedDict()
        self.published: list[dict[str, LoweredLimits]] = []
        self.disk_full = False
        self.plugin = Plugin(
            theirs, rules, self.guard, lambda: self.gate_runs, self.lowered, self.publish
        )
        self._decoder = Decoder()
        self._calls = 1

    def publish(self) -> None:
        if self.disk_full:
            raise OSError(28, "No space left on device")
        self.published.append(dict(self.lowered))

    def receive(self) -> Message:
        while True:
            for received in self._decoder.feed(self.connection.recv(65536)):
                return received

    def call(self, method: str, payload: bytes) -> Fields:
        """The payload of the answer."""
        answer = self.answer(method, payload)
        assert not messages.response_error(answer), "no call of the runtime fails"
        return Fields(Fields(answer).octets(2))

    def answer(self, method: str, payload: bytes) -> bytes:
        """The whole answer."""
        self._calls += 2
        request = message({1: "nri.pkg.api.v1alpha1.Plugin", 2: method, 3: payload})
        self.connection.sendall(encode(Message(PLUGIN, self._calls, REQUEST, request)))
        self.plugin.turn(1)
        answer = self.receive()
        assert (answer.connection, answer.call, answer.kind) == (PLUGIN, self._calls, RESPONSE)
        return answer.payload


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    yield from connected("")


@pytest.fixture
def requiring() -> Iterator[Runtime]:
    """The runtime of a node that requires the gate."""
    yield from connected(KEY)


def connected(toleration: str) -> Iterator[Runtime]:
    made = Runtime(toleration)
    made.receive()
    yield made
    made.plugin.close()
    made.connection.close()


def pod(uid: str, annotation: str = "") -> bytes:
    annotations = [message({1: annotation, 2: "true"})] if annotation else []
    return message({1: "sandbox", 2: "pod", 3: uid, 4: "team", 6: annotations})


def container(
    policy: Mapping[int, object] | None, state: int = 1, identity: str = "id", **fields: object
) -> bytes:
    linux = {} if policy is None else {8: message(policy)}
    more = {6: fields.get("annotations", []), 13: fields.get("rlimits", [])}
    return message({1: identity, 2: "sandbox", 3: "main", 4: state, 11: message(linux), **more})


def test_plugin_at_its_start_registers() -> None:
    sent = Runtime().receive()
    assert (sent.connection, sent.kind) == (RUNTIME, REQUEST)
    method, payload = messages.parse_request(sent.payload)
    assert method == "RegisterPlugin"
    assert (Fields(payload).text(1), Fields(payload).text(2)) == ("pinwarden", "90")


def test_configured_plugin_subscribes_to_creation_validation_and_removal(runtime: Runtime) -> None:
    answer = runtime.call(
        "Configure", message({2: "containerd", 3: "v2.4.2", 5: 2000, 6: "v0.12.3"})
    )
    assert answer.number(2) == 1 << 3 | 1 << 10 | 1 << 13


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    "configuration",
    [{2: "containerd", 3: "v2.2.0"}, {2: "cri-o", 3: "1.37.0", 6: "v0.12.1"}, {}],
)
def test_runtime_that_does_not_pass_policies_gets_no_answer(
    runtime: Runtime, configuration: Mapping[int, object]
) -> None:
    """An answer would let it replace RuntimeDefault by a policy that allows everything."""
    request = message({2: "Configure", 3: message(configuration)})
    runtime.connection.sendall(encode(Message(PLUGIN, 3, REQUEST, request)))
    with pytest.raises(ConnectionRefusedError, match="does not pass"):
        runtime.plugin.turn(1)


@pytest.mark.parametrize("profile", [0, 1, 2])
def test_container_without_a_policy_is_gated_whatever_its_profile_says(
    runtime: Runtime, profile: int
) -> None:
    """The runtime applies no policy to a privileged container, also with RuntimeDefault."""
    linux = message({7: message({1: profile})})
    privileged = message({1: "id", 2: "sandbox", 3: "main", 4: 1, 11: linux})
    answer = runtime.call("CreateContainer", message({1: pod("new"), 2: privileged}))
    assert answer.message(1) is not None
    assert not runtime.plugin.ungated


@pytest.mark.rule("P14")
def test_removed_container_is_forgotten(runtime: Runtime) -> None:
    runtime.plugin.ungated |= {"id": "a reason", "other": "a reason"}
    runtime.lowered |= dict.fromkeys(["id", "other"], LoweredLimits("pod", INHERITED, APPLIED))
    for event in (10, 11):
        assert set(runtime.lowered) == set(runtime.plugin.ungated) == {"id", "other"}
        change = message({1: event, 2: pod("new"), 3: container(POLICY)})
        runtime.call("StateChange", change)
    assert set(runtime.lowered) == set(runtime.plugin.ungated) == {"other"}


def test_container_with_a_huge_environment_is_omitted_from_the_report(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its author must not fill the memory of the plugin."""
    caplog.set_level("INFO")
    monkeypatch.setattr("pinwarden.node.nri.plugin._MOST_BYTES", 4096)
    huge = container(None, state=3) + message({8: ["A=" + "x" * 8192]})
    small = container(None, state=3) + message({8: ["A=" + "x" * 1000]})
    runtime.call("Synchronize", message({1: [pod("new")], 2: [huge, small]}))
    assert sum(map(len, runtime.plugin._found)) < 100
    runtime.plugin.turn(0)
    assert "1 containers run, 0 of them with the gate" in caplog.text
    assert "1 more containers have too large requests" in caplog.text


@pytest.mark.rule("H1")
def test_gate_whose_lock_cannot_be_read_counts_as_ended(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(runtime.plugin, "_gate_runs", fail)
    answer = runtime.call("CreateContainer", message({1: pod("new"), 2: container(POLICY)}))
    assert answer.message(1) is None
    assert runtime.plugin.ungated == {"id": NO_GATE}


def test_container_that_comes_before_its_pod_is_found(runtime: Runtime) -> None:
    runtime.call("Synchronize", message({2: [container(None, state=3)], 3: 1}))
    runtime.call("Synchronize", message({1: [pod("new")]}))
    runtime.plugin.turn(0)
    assert list(runtime.plugin.ungated) == ["id"]


def test_reason_of_a_running_container_stays_after_a_reconnect(runtime: Runtime) -> None:
    foreign = container({1: "SCMP_ACT_ALLOW", 5: "/run/other.sock"}, state=3)
    runtime.call("Synchronize", message({1: [pod("new")], 2: [foreign]}))
    runtime.plugin.turn(0)
    assert "listener of its own" in runtime.plugin.ungated["id"]


def test_container_of_an_unknown_pod_gets_the_merged_policy(runtime: Runtime) -> None:
    answer = runtime.call("CreateContainer", message({1: pod("new"), 2: container(POLICY)}))
    adjusted = answer.message(1)
    for number in (6, 6):
        assert adjusted is not None
        adjusted = adjusted.message(number)
    assert adjusted is not None
    assert (adjusted.text(1), adjusted.text(5)) == ("SCMP_ACT_ERRNO", LISTENER_PATH)
    rules = [(rule.texts(1), rule.text(2)) for rule in adjusted.messages(7)]
    assert rules == [(("read",), "SCMP_ACT_ALLOW"), (("mlock",), "SCMP_ACT_NOTIFY")]


def test_container_of_an_unlimited_pod_is_not_adjusted(runtime: Runtime) -> None:
    runtime.plugin.node = NodePods(listed=frozenset({"free"}))
    answer = runtime.call("CreateContainer", message({1: pod("free"), 2: container(POLICY)}))
    assert answer.message(1) is None


@pytest.mark.parametrize("payload", [b"", b"\xff", message({1: pod("new")})])
def test_request_that_is_not_understood_adjusts_nothing(runtime: Runtime, payload: bytes) -> None:
    assert runtime.call("CreateContainer", payload).message(1) is None
    assert runtime.guard.failures["request"] == 1


def test_unknown_call_is_answered(runtime: Runtime) -> None:
    assert runtime.call("RunPodSandbox", b"").message(1) is None


def test_synchronization_in_two_parts_asks_for_the_second(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gated = container({1: "SCMP_ACT_ALLOW", 5: LISTENER_PATH}, state=3)
    first = message({1: [pod("new")], 2: [gated], 3: 1})
    assert runtime.call("Synchronize", first).number(2) == 1
    second = message({2: [container(None, state=3), container(None, state=4)]})
    assert runtime.call("Synchronize", second).number(2) == 0
    runtime.plugin.turn(0)
    assert "2 containers run, 1 of them with the gate" in caplog.text
    assert "container main of pod team/pod runs ungated: it was created before" in caplog.text
    assert list(runtime.plugin.ungated) == ["id"]


def test_container_created_while_no_gate_ran_keeps_this_reason(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.gate_runs = False
    request = message({1: pod("new"), 2: container(POLICY)})
    assert not runtime.call("CreateContainer", request).octets(1)
    runtime.gate_runs = True
    runtime.call("ValidateContainerAdjustment", request)
    assert runtime.plugin.ungated == {"id": NO_GATE}
    assert "another plugin" not in caplog.text


def test_call_that_comes_before_the_report_of_found_containers_is_answered_first(
    runtime: Runtime,
) -> None:
    runtime.call("Synchronize", message({1: [pod("new")], 2: [container(None, state=3)]}))
    answer = runtime.call("CreateContainer", message({1: pod("new"), 2: container(POLICY)}))
    assert answer.message(1) is not None
    assert not runtime.plugin.ungated
    runtime.plugin.turn(0)
    assert list(runtime.plugin.ungated) == ["id"]


def test_found_container_that_is_not_understood_hides_no_other(runtime: Runtime) -> None:
    found = [container(None, state=3), b"\xff"]
    runtime.call("Synchronize", message({1: [pod("new")], 2: found}))
    runtime.plugin.turn(0)
    assert list(runtime.plugin.ungated) == ["id"]
    assert runtime.guard.failures["request"] == 1


@pytest.mark.parametrize("listener", ["", "/run/other.sock"])
def test_policy_of_another_plugin_is_accepted_and_logged(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, listener: str
) -> None:
    adjusted = message({6: message({6: message({1: "SCMP_ACT_ALLOW", 5: listener})})})
    request = message({1: pod("new"), 2: container(POLICY), 3: adjusted})
    runtime.call("CreateContainer", request)
    answer = runtime.call("ValidateContainerAdjustment", request)
    assert answer.number(1) == 0
    assert "another plugin set its seccomp policy" in caplog.text


def test_configuration_that_changes_before_the_validation_blames_no_plugin(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    request = message({1: pod("new"), 2: container(POLICY)})
    runtime.plugin.node = NodePods(listed=frozenset({"new"}))
    runtime.call("CreateContainer", request)
    runtime.plugin.node = NodePods(governed=frozenset({"new"}))
    runtime.call("ValidateContainerAdjustment", request)
    assert "another plugin" not in caplog.text


def test_container_that_is_rejected_after_the_answer_is_logged_once(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """The runtime asks for no validation if another plugin fails, or sets the policy too."""
    request = message({1: pod("new"), 2: container(POLICY)})
    runtime.call("CreateContainer", request)
    runtime.call("CreateContainer", request)
    assert caplog.text.count("container main of pod team/pod was rejected: another NRI plugin") == 1
    runtime.call("ValidateContainerAdjustment", request)
    runtime.call("CreateContainer", request)
    assert caplog.text.count("was rejected") == 1


@pytest.mark.parametrize("gate_runs", [True, False])
def test_container_that_cannot_get_a_required_gate_is_rejected_with_the_reason(
    requiring: Runtime, caplog: pytest.LogCaptureFixture, gate_runs: bool
) -> None:
    requiring.gate_runs = gate_runs
    policy = {1: "SCMP_ACT_ALLOW", 5: "/run/other.sock"} if gate_runs else POLICY
    request = message({1: pod("new"), 2: container(policy)})
    error = messages.response_error(requiring.answer("CreateContainer", request))
    start = "container main of pod team/pod is rejected, because this node requires the gate: "
    assert error.startswith(start)
    assert ("listener of its own" if gate_runs else "no gate runs yet") in error
    assert error in caplog.text
    assert not requiring.plugin.ungated
    assert not requiring.guard.failures["request"]
    tolerated = message({1: pod("new", KEY), 2: container(policy)})
    assert not requiring.call("CreateContainer", tolerated).octets(1)
    assert list(requiring.plugin.ungated) == ["id"]


def test_container_whose_required_gate_another_plugin_replaced_is_rejected(
    requiring: Runtime,
) -> None:
    request = message({1: pod("new"), 2: container(POLICY)})
    requiring.call("CreateContainer", request)
    answer = requiring.answer("ValidateContainerAdjustment", request)
    assert "another plugin set its seccomp policy" in messages.response_error(answer)


def test_container_that_can_get_a_required_gate_starts_with_it(requiring: Runtime) -> None:
    for annotation in ("", KEY):
        request = message({1: pod("new", annotation), 2: container(POLICY)})
        assert requiring.call("CreateContainer", request).octets(1)


def test_request_that_is_not_understood_is_accepted_on_a_node_that_requires_the_gate(
    requiring: Runtime,
) -> None:
    assert requiring.call("CreateContainer", b"").message(1) is None


def test_rejection_by_the_runtime_ends_the_connection(runtime: Runtime) -> None:
    status = message({1: message({1: 2, 2: "invalid index"})})
    runtime.connection.sendall(encode(Message(RUNTIME, 1, RESPONSE, status)))
    with pytest.raises(ConnectionRefusedError, match="invalid index"):
        runtime.plugin.turn(1)


def test_end_of_the_runtime_is_noticed(runtime: Runtime) -> None:
    runtime.connection.close()
    with pytest.raises(OSError, match="closed"):
        runtime.plugin.turn(1)


@pytest.mark.rule("P14")
def test_container_of_a_limited_pod_is_created_with_the_limit(runtime: Runtime) -> None:
    runtime.plugin.node = LIMITED
    answer = runtime.call("CreateContainer", message({1: pod("limited"), 2: container(POLICY)}))
    adjusted = answer.message(1)
    assert adjusted is not None
    assert adjusted.message(6) is not None
    (rlimit,) = adjusted.messages(7)
    assert (rlimit.text(1), rlimit.number(2), rlimit.number(3)) == ("RLIMIT_MEMLOCK", MIB, MIB)
    assert adjusted.strings(2) == {ANNOTATION: f"{8 * MIB}:{64 * MIB}"}
    assert runtime.published == [{"id": LoweredLimits("limited", INHERITED, APPLIED)}]


def test_ungateable_container_is_created_with_the_limit(runtime: Runtime) -> None:
    runtime.plugin.node = LIMITED
    foreign = container({1: "SCMP_ACT_ALLOW", 5: "/run/other.sock"})
    answer = runtime.call("CreateContainer", message({1: pod("limited"), 2: foreign}))
    adjusted = answer.message(1)
    assert adjusted is not None
    assert adjusted.message(6) is None
    assert len(list(adjusted.messages(7))) == 1


@pytest.mark.rule("H3")
def test_container_keeps_its_limits_if_they_cannot_be_written_to_disk(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.plugin.node = LIMITED
    runtime.disk_full = True
    answer = runtime.call("CreateContainer", message({1: pod("limited"), 2: container(POLICY)}))
    adjusted = answer.message(1)
    assert adjusted is not None
    assert adjusted.message(6) is not None, "it is gated all the same"
    assert not list(adjusted.messages(7))
    assert not runtime.lowered
    assert "keeps its RLIMIT_MEMLOCK: [Errno 28]" in caplog.text


def test_container_with_limits_of_its_own_keeps_them(runtime: Runtime) -> None:
    runtime.plugin.node = LIMITED
    own = container(POLICY, rlimits=[message({1: "RLIMIT_MEMLOCK", 2: 4096, 3: 4096})])
    answer = runtime.call("CreateContainer", message({1: pod("limited"), 2: own}))
    adjusted = answer.message(1)
    assert adjusted is not None
    assert not list(adjusted.messages(7))
    other = container(POLICY, rlimits=[message({1: "RLIMIT_NOFILE", 2: 4096, 3: 4096})])
    answer = runtime.call("CreateContainer", message({1: pod("limited"), 2: other}))
    adjusted = answer.message(1)
    assert adjusted is not None
    assert len(list(adjusted.messages(7))) == 1


@pytest.mark.rule("H3")
def test_synchronization_renews_the_lowered_limits(runtime: Runtime) -> None:
    """The removed container is forgotten, and the annotation names what no file has."""
    gone, known = (LoweredLimits("limited", Limits(1, 2), Limits(0, 0)) for _ in range(2))
    runtime.lowered.update(gone=gone, known=known)
    noted = {
        "annotations": [message({1: ANNOTATION, 2: f"{4 * MIB}:unlimited"})],
        "rlimits": [message(MEMLOCK)],
    }
    containers = [
        container(None, 3, "known", **noted),
        container(None, 3, "new", **noted),
        container(None, 3, "inherits", annotations=noted["annotations"]),
        container(None, 3, "other", rlimits=noted["rlimits"]),
        container(None, 4, "ended", **noted),
    ]
    runtime.call("Synchronize", message({1: [pod("limited")], 2: containers}))
    runtime.plugin.turn(1)
    assert runtime.lowered == {
        "known": known,
        "new": LoweredLimits("limited", Limits(4 * MIB, 64 * MIB), APPLIED),
    }


def test_number_of_lowered_containers_is_bounded(runtime: Runtime) -> None:
    runtime.plugin.node = LIMITED
    old = LoweredLimits("limited", INHERITED, APPLIED)
    runtime.lowered.update((str(number), old) for number in range(MOST_LOWERED))
    runtime.call("CreateContainer", message({1: pod("limited"), 2: container(POLICY)}))
    assert len(runtime.lowered) == MOST_LOWERED
    assert "id" in runtime.lowered
    assert "0" not in runtime.lowered


@pytest.mark.rule("P5")
def test_limits_of_a_container_with_an_own_profile_of_the_gate_stay_while_its_pod_is_unknown(
    runtime: Runtime,
) -> None:
    runtime.plugin.node = NodePods(unknown=0)
    own = container({1: "SCMP_ACT_ALLOW", 5: LISTENER_PATH})
    answer = runtime.call("CreateContainer", message({1: pod("new"), 2: own}))
    assert answer.message(1) is None
    assert not runtime.lowered
