"""Policies with the gate's rules in libseccomp: each call gets its own answer, or is gated."""

import platform
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gate_node.filters import oci
from gate_node.filters import policy as as_policy
from pinwarden.node.linux import syscalls
from pinwarden.node.linux.syscalls import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64
from pinwarden.node.seccomp import policy
from pinwarden.node.seccomp.filter_length import MOST_INSTRUCTIONS, most_instructions
from pinwarden.node.seccomp.gated_calls import GATED
from pinwarden.node.seccomp.policy import (
    Comparison,
    Policy,
    Rule,
    UngateableError,
    gate,
)
from pinwarden.node.seccomp.profiles import runtime_default

from .filters import ALLOW, NOTIFY, Program, program

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the numbers are those of x86_64 and i386"
)

X32 = 1 << 30
LOG = 0x7FFC0000
ALL = policy.ARCHITECTURES["x86_64"]
NUMBERS = {**syscalls.NUMBERS[AUDIT_ARCH_X86_64], "getpid": 39, "personality": 135}
X32_NUMBERS = {"ioctl": 514}
"""Those that differ from x86_64 (syscall_64.tbl)."""
I386 = {"mlock": 150, "mlockall": 152, "mmap2": 192, "mlock2": 376, "mremap": 163, "shmat": 397}
OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
VALUES = (0, 1, 2, 5, 11, 38, 44, 0x21, 0x100, 0x2000, 0x3B71, 1 << 31, 1 << 40, 2**64 - 1)


def is_gated(name: str, arguments: Sequence[int]) -> bool:
    condition = GATED.get(name, ...)
    if condition is ... or condition is None:
        return condition is None
    value = arguments[condition.argument]
    return any(value & bits.mask == bits.value for bits in condition.patterns)


def arguments_of(choose: random.Random) -> list[int]:
    return [
        choose.choice(VALUES) ^ (choose.getrandbits(64) if choose.random() < 0.2 else 0)
        for _ in range(6)
    ]


def compare(own: Program, merged: Program, choose: random.Random, calls: int) -> None:
    """Every call of the native architecture and of x32.

    A policy with 32-bit architectures gates each `shmctl`, and each `mmap` of x32 or with bit 63 in
    the address.
    """
    for name, number in NUMBERS.items():
        for _ in range(calls):
            arguments = arguments_of(choose)
            for bit in (0, X32):
                if bit and max(arguments) >> 32:
                    continue  # x32 is a 32-bit architecture for libseccomp
                call = X32_NUMBERS.get(name, number) | bit if bit else number
                wanted, answer = own.answer(call, arguments), merged.answer(call, arguments)
                if wanted not in (ALLOW, LOG):
                    assert answer == wanted, (name, arguments)
                elif is_gated(name, arguments):
                    assert answer == NOTIFY, (name, arguments)
                elif (name == "mmap" and (bit or arguments[0] >> 63)) or name == "shmctl":
                    assert answer in (wanted, NOTIFY), (name, arguments)
                else:
                    assert answer == wanted, (name, arguments)


@pytest.mark.rule("P1")
@pytest.mark.parametrize("architectures", [(), ALL], ids=["native", "all"])
def test_runtime_default_merged_gates_allowed_calls_and_changes_no_other(
    architectures: tuple[str, ...],
) -> None:
    own = as_policy(runtime_default(), architectures)
    gated = gate(own, "x86_64")
    merged = program(oci(gated))
    compare(program(oci(own)), merged, random.Random(1), 300)
    assert len(merged.instructions) <= most_instructions(gated, ALL[0]) <= 0.8 * MOST_INSTRUCTIONS


@pytest.mark.rule("P1")
@pytest.mark.parametrize(
    "own", [None, as_policy(runtime_default(), ALL)], ids=["unconfined", "default"]
)
def test_32_bit_call_that_pins_in_merged_policy_goes_to_the_gate(own: Policy | None) -> None:
    merged = gate(own, "x86_64")
    assert merged.architectures == ALL
    answers = program(oci(merged))

    def answer(number: int, *arguments: int) -> int:
        return answers.answer(number, arguments, AUDIT_ARCH_I386)

    for name in ("mlock", "mlock2", "mlockall", "mremap", "shmat"):
        assert answer(I386[name], 4096, 4096) == NOTIFY, name
    assert answer(192, 0, 4096, 3, 0x22) == ALLOW
    assert answer(192, 0, 4096, 3, 0x2022) == NOTIFY
    assert answer(90, 0x1234) == answer(90, 0) == NOTIFY, "its arguments are in memory"
    for version in (0, 1):
        for call in (21, 24):
            assert answer(117, call | version << 16, 1, 11) == NOTIFY
            assert answer(117, call | version << 16, 1, 2) == NOTIFY
        assert answer(117, 23 | version << 16) == ALLOW
    assert answer(396, 1, 11) == NOTIFY
    assert answer(102, 1) == answer(359, 44) == NOTIFY
    assert answer(102, 3) == (ALLOW if own is None else NOTIFY)
    assert answer(359, 2) == ALLOW
    assert answer(20) == ALLOW, "getpid"


def some_policy(choose: random.Random) -> Policy:
    deny = choose.random() < 0.6
    default_action = choose.choice(
        ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"] if deny else ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"]
    )
    rules = []
    names = list(NUMBERS)
    choose.shuffle(names)
    while names:
        group = tuple(names.pop() for _ in range(min(len(names), choose.randint(1, 4))))
        if choose.random() < 0.2:
            continue
        action = choose.choice(["SCMP_ACT_ALLOW", "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"])
        comparisons = tuple(comparison_of(choose) for _ in range(choose.choice([0, 0, 0, 1, 2])))
        if len({each.argument for each in comparisons}) < len(comparisons):
            # joined by "or"; libseccomp answers some calls wrongly if such conditions overlap
            comparisons = tuple(each._replace(operator="SCMP_CMP_EQ") for each in comparisons)
        rules.append(Rule(group, action, comparisons, 38 if action == "SCMP_ACT_ERRNO" else None))
    return Policy(default_action, tuple(rules), choose.choice([(), ALL]))


def comparison_of(choose: random.Random) -> Comparison:
    operator = choose.choice(OPERATORS)
    first, second = choose.choice(VALUES), choose.choice(VALUES)
    if operator == "MASKED_EQ":
        second &= first
    return Comparison(choose.randrange(4), first, second, f"SCMP_CMP_{operator}")


@pytest.mark.rule("P1")
def test_any_policy_merged_answers_as_before_or_gates() -> None:
    first = random.randrange(1 << 30)
    merges = 0
    for seed in range(first, first + 200):
        choose = random.Random(seed)
        own = some_policy(choose)
        try:
            before = program(oci(own))
            merged = gate(own, "x86_64")
        except (OSError, UngateableError):
            continue
        merges += 1
        try:
            after = program(oci(merged))
            compare(before, after, choose, 30)
            assert len(after.instructions) <= most_instructions(merged, ALL[0])
        except (AssertionError, OSError) as error:
            raise AssertionError(f"seed {seed}: {own}") from error
    assert merges > 50


@pytest.mark.rule("H1")
def test_policy_whose_merged_program_the_kernel_would_reject_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = (Comparison(0, 0x10000 | bits, bits, "SCMP_CMP_MASKED_EQ") for bits in range(1090))
    own = as_policy(runtime_default(), ALL)
    rules = [rule for rule in own.rules if "personality" not in rule.names]
    rules += [Rule(("personality",), "SCMP_ACT_ERRNO", (number,), 38) for number in numbers]
    own = replace(own, rules=tuple(rules))
    assert len(program(oci(own)).instructions) <= MOST_INSTRUCTIONS
    with pytest.raises(UngateableError, match="too long"):
        gate(own, "x86_64")
    monkeypatch.setattr(policy, "MOST_INSTRUCTIONS", 1 << 20)
    merged = gate(own, "x86_64")
    assert len(program(oci(merged)).instructions) > MOST_INSTRUCTIONS
