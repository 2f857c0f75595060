"""The gated profiles compared with the runtime's default rules, and their files on a node."""

import hashlib
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.linux.syscalls import NUMBERS
from pinwarden.node.seccomp.gated_calls import GATED, LISTENER_PATH
from pinwarden.node.seccomp.patterns import BitPattern, complement
from pinwarden.node.seccomp.profiles import encode, install, profiles, runtime_default

RELEASED = {
    "runtime-default-v2.json": "f29eace600b7c6a18e9304cecc4c13252f10da3b6e7428befaa76143bc5887a4",
    "unconfined-v2.json": "53f08af8c8d107edb977c061fbe26cf39b759951f2367c22e25df688a8ee631a",
}
DEFAULT = runtime_default()
RUNTIME, UNCONFINED = (profiles()[name] for name in RELEASED)


@st.composite
def patterns(draw: st.DrawFn, width: int) -> list[BitPattern]:
    numbers = st.integers(0, 2**width - 1)
    masks = draw(st.lists(numbers, max_size=4))
    return [BitPattern(mask, draw(numbers) & mask) for mask in masks]


def matches(bits: BitPattern, number: int) -> bool:
    return number & bits.mask == bits.value


@given(taken=patterns(8))
def test_the_complement_has_every_other_number_once_and_none_of_the_taken(
    taken: list[BitPattern],
) -> None:
    rest = complement(taken, 8)
    for number in range(2**8):
        is_taken = any(matches(each, number) for each in taken)
        assert sum(matches(each, number) for each in rest) == (0 if is_taken else 1)
    assert all(each.value & ~each.mask == 0 for each in rest)


@given(taken=patterns(32), number=st.integers(0, 2**64 - 1))
def test_the_complement_leaves_what_is_above_its_width_alone(
    taken: list[BitPattern], number: int
) -> None:
    rest = complement(taken, 32)
    is_taken = any(matches(each, number) for each in taken)
    assert sum(matches(each, number) for each in rest) == (0 if is_taken else 1)


def test_the_complement_of_one_number_is_a_pattern_for_each_bit() -> None:
    assert len(complement([BitPattern(2**32 - 1, 11)], 32)) == 32
    assert complement([BitPattern(0x2000, 0x2000)], 32) == [BitPattern(0x2000, 0)]
    assert complement([], 32) == [BitPattern(0, 0)]


def by_name(rules: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the rules of a call, without the names."""
    return [
        {key: value for key, value in rule.items() if key != "names"}
        for rule in rules
        if name in rule["names"]
    ]


NAMES = {name for rule in DEFAULT["syscalls"] for name in rule["names"]}


def test_every_other_call_has_the_runtimes_own_rules() -> None:
    assert {name for rule in RUNTIME["syscalls"] for name in rule["names"]} <= NAMES
    for name in NAMES - set(GATED):
        assert by_name(RUNTIME["syscalls"], name) == by_name(DEFAULT["syscalls"], name), name


def test_a_family_of_sockets_that_pins_is_sent_and_the_others_are_as_they_were() -> None:
    of_default, of_gated = (by_name(rules["syscalls"], "socket") for rules in (DEFAULT, RUNTIME))
    assert [rule["args"] for rule in of_gated] == [rule["args"] for rule in of_default]
    sent = [rule["args"][0]["value"] for rule in of_gated if rule["action"] == "SCMP_ACT_NOTIFY"]
    assert sent == [44]


@pytest.mark.parametrize("name", [name for name in GATED if name != "socket"])
def test_a_gated_call_is_sent_or_allowed_only_where_the_runtime_allows_it(name: str) -> None:
    allowed = {"action": "SCMP_ACT_ALLOW"} in by_name(DEFAULT["syscalls"], name)
    rules = by_name(RUNTIME["syscalls"], name)
    actions = [rule["action"] for rule in rules]
    assert all(rule.get("args") for rule in rules if rule["action"] == "SCMP_ACT_ALLOW")
    if not allowed:
        assert actions == []
    elif GATED[name] is None:
        assert actions == ["SCMP_ACT_NOTIFY"]
    else:
        assert actions == ["SCMP_ACT_NOTIFY", "SCMP_ACT_ALLOW"]
    assert name.startswith("io_uring") or allowed


def test_what_the_runtime_does_where_no_rule_is_stays() -> None:
    assert {key: RUNTIME.get(key) for key in ("defaultAction", "defaultErrnoRet")} == {
        key: DEFAULT.get(key) for key in ("defaultAction", "defaultErrnoRet")
    }


def test_unconfined_pods_are_allowed_all_but_what_is_sent() -> None:
    assert UNCONFINED["defaultAction"] == "SCMP_ACT_ALLOW"
    assert [rule["action"] for rule in UNCONFINED["syscalls"]] == ["SCMP_ACT_NOTIFY"] * len(GATED)
    assert [name for rule in UNCONFINED["syscalls"] for name in rule["names"]] == list(GATED)


@pytest.mark.parametrize("profile", [RUNTIME, UNCONFINED], ids=RELEASED)
def test_a_profile_is_what_a_runtime_reads(profile: dict[str, Any]) -> None:
    assert "architectures" not in profile
    assert profile["listenerPath"] == LISTENER_PATH
    for rule in profile["syscalls"]:
        indices = {each["index"] for each in rule.get("args", [])}
        # runc joins conditions by "or" only where they are on one argument
        assert len(indices) <= 1 or len(indices) == len(rule["args"])


def test_the_listener_is_the_callers_choice() -> None:
    assert {profile["listenerPath"] for profile in profiles("/run/other.sock").values()} == {
        "/run/other.sock"
    }


@pytest.mark.parametrize("arch", NUMBERS)
def test_the_gate_can_read_every_call_that_is_sent(arch: int) -> None:
    assert set(NUMBERS[arch]) == set(GATED)


def test_a_released_profile_never_changes() -> None:
    now = {
        name: hashlib.sha256(encode(profile)).hexdigest() for name, profile in profiles().items()
    }
    assert now == RELEASED, "running pods refer to a released profile: make a new version instead"


def test_what_is_missing_is_written_for_everyone_to_read(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert install(folder) == []
    files = {path.name: path for path in (folder / "pinwarden").iterdir()}
    assert {name: json.loads(path.read_text()) for name, path in files.items()} == profiles()
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o644}


def test_what_is_there_stays_and_is_told_of_where_it_differs(tmp_path: Path) -> None:
    install(tmp_path)
    own, changed = (tmp_path / "pinwarden" / name for name in RELEASED)
    changed.write_text("another's")
    before = own.stat().st_ino, changed.stat().st_ino
    assert install(tmp_path) == [changed]
    assert (own.stat().st_ino, changed.stat().st_ino) == before
    assert changed.read_text() == "another's"


def test_files_of_an_earlier_version_stay_for_the_pods_that_refer_to_them(tmp_path: Path) -> None:
    earlier = tmp_path / "pinwarden" / "runtime-default-v1.json"
    earlier.parent.mkdir()
    earlier.write_text("as it was")
    assert install(tmp_path) == []
    assert earlier.read_text() == "as it was"
    assert {path.name for path in earlier.parent.iterdir()} == {earlier.name, *RELEASED}


def test_a_file_that_comes_first_in_between_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    changed = tmp_path / "pinwarden" / "unconfined-v2.json"
    changed.write_text("another's")
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert install(tmp_path) == [changed]
    assert changed.read_text() == "another's"
    assert {path.name for path in (tmp_path / "pinwarden").iterdir()} == set(RELEASED)
