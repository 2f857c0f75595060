"""The gate's rules merged into a container's own seccomp policy. Pure.

The merged policy answers each call as the container's own policy does, with one difference: a gated
call that the own policy allows goes to the gate. The gate then lets the kernel execute the call, or
makes it fail. So the merge never loosens a policy.

For each gated call, the allowed calls are a set of argument boxes (`patterns`). The merge splits
the set into its gated part and the rest, as disjoint boxes. So no call meets two of the new rules,
and their order has no meaning. Rules that deny stay as they are.

The runtime joins a rule's conditions by "and", but by "or" as soon as two of them have the same
argument (runc, `matchCall`). A rule with the default action means nothing.

32-bit programs pin by other calls. Some of them exist on 32-bit architectures only, and libseccomp
leaves out the rules of such a call on other architectures:

- `mmap2` is `mmap`.
- The old `mmap` of i386 has its arguments in memory. A rule with a condition on bit 63 of an
  argument always meets on a 32-bit architecture, because libseccomp cuts the condition to 32 bits.
  On a 64-bit one, no valid `mmap` has an address with this bit. So each old `mmap` is gated.
- `ipc` and `socketcall` of i386 name another call by their first argument, and `ipc` ignores its
  upper bits (`ksys_ipc`).

To a rule for `shmat`, `shmctl` or `socket`, libseccomp adds a rule for `ipc` or `socketcall`, with
the other call's conditions at the wrong arguments or without them. Two of the added rules may then
contradict each other, and the second one is rejected. So on i386 every `shmctl` is gated, and on
ARM too, where a command may have the bit IPC_64. `socket` is too frequent for that: where some
families are gated and others not, every `socketcall` is gated, by a rule without conditions before
those of `socket`. libseccomp lets this rule replace the others.
"""

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple

from pinwarden.node.linux.syscalls import IPC_MASK, IPC_SHMAT, IPC_SHMCTL, SYS_SOCKET
from pinwarden.node.seccomp.filter_length import MOST_INSTRUCTIONS, most_instructions
from pinwarden.node.seccomp.gated_calls import GATED, LISTENER_PATH, ArgumentCondition
from pinwarden.node.seccomp.patterns import (
    ANY,
    EVERYTHING,
    BitPattern,
    Box,
    TooManyBoxesError,
    box,
    comparison,
    disjoint,
    intersect,
    subtract,
)

NOTIFY: Final = "SCMP_ACT_NOTIFY"
_ALLOW: Final = "SCMP_ACT_ALLOW"
_TRACE: Final = "SCMP_ACT_TRACE"
_PERMISSIVE: Final = (_ALLOW, "SCMP_ACT_LOG")
_I386: Final = "SCMP_ARCH_X86"
_X32: Final = "SCMP_ARCH_X32"
_32_BIT: Final = frozenset({_I386, _X32, "SCMP_ARCH_ARM"})
ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": ("SCMP_ARCH_X86_64", _I386, _X32),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
"""The architectures of the programs of a machine."""
_KNOWN_ARCHITECTURES: Final = frozenset(name for names in ARCHITECTURES.values() for name in names)
VERSION: Final = 3
METADATA: Final = f"pinwarden-v{VERSION}"


class Comparison(NamedTuple):
    """A condition of a rule on an argument (LinuxSeccompArg)."""

    argument: int
    value: int
    value_two: int
    operator: str


@dataclass(frozen=True, slots=True)
class Rule:
    """An action for some calls (LinuxSyscall)."""

    names: tuple[str, ...]
    action: str
    comparisons: tuple[Comparison, ...] = ()
    errno: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A seccomp policy (LinuxSeccomp of the OCI runtime specification)."""

    default_action: str
    rules: tuple[Rule, ...] = ()
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    default_errno: int | None = None
    listener_path: str = ""
    listener_metadata: str = ""


class UngateableError(ValueError):
    """A policy into which the gate's rules cannot be merged. The message says why."""


@lru_cache(maxsize=64)
def gate(own: Policy | None, machine: str, listener: str = LISTENER_PATH) -> Policy:
    """Return a container's own policy with the gate's rules.

    `own` is None for an unconfined container, and `machine` is as in `uname(2)`. Raises
    UngateableError for a policy with a listener of its own, with a default errno (which NRI does
    not carry), with conditions beyond `MOST_BOXES`, or with a BPF program that may be too long.
    """
    architectures = ARCHITECTURES.get(machine, ())
    if own is None:
        own = Policy(_ALLOW, architectures=architectures)
    _check(own)
    calls = dict(_gated_calls(own.architectures))
    _check_rules(own, calls)
    try:
        gated = _gate(own, calls, listener)
    except TooManyBoxesError as error:
        raise UngateableError(f"its seccomp policy is too complex: {error}") from error
    length = most_instructions(gated, "".join(architectures[:1]))
    if length > MOST_INSTRUCTIONS:
        raise UngateableError(
            f"its seccomp policy is too long: with the gate's rules, its BPF program may have up "
            f"to {length} instructions, and the kernel accepts {MOST_INSTRUCTIONS}"
        )
    return gated


def _gate(own: Policy, calls: Mapping[str, Sequence[Box]], listener: str) -> Policy:
    merged = _merge(own, calls)
    if _I386 in own.architectures and _contradicts(own, merged, "socket"):
        merged = _merge(own, {**calls, "socketcall": [EVERYTHING]})
        whole = [rule for rule in merged if "socketcall" in rule.names]
        if whole != [Rule(("socketcall",), NOTIFY)]:
            raise UngateableError("its seccomp policy has socket, but not socketcall, for i386")
        merged = (*whole, *(rule for rule in merged if rule not in whole))
    return replace(own, rules=merged, listener_path=listener, listener_metadata=METADATA)


def _merge(own: Policy, calls: Mapping[str, Sequence[Box]]) -> tuple[Rule, ...]:
    """Return the rules of a policy, with rules of the gate for the allowed gated calls."""
    rules: list[Rule] = []
    permitted: dict[str, list[tuple[str, list[Box]]]] = {name: [] for name in calls}
    denied: dict[str, list[Box]] = {name: [] for name in calls}
    for rule in own.rules:
        permissive = rule.action in _PERMISSIVE
        for name in calls.keys() & set(rule.names):
            if permissive:
                permitted[name].append((rule.action, _boxes(rule)))
            elif not _is_default(own, rule):
                denied[name] += _boxes(rule)
        names = tuple(name for name in rule.names if not permissive or name not in calls)
        if names:
            rules.append(replace(rule, names=names))
    for name, gated in calls.items():
        if own.default_action in _PERMISSIVE:
            permitted[name].append((own.default_action, [EVERYTHING]))
        rules += _rules(name, gated, permitted[name], denied[name], own.default_action)
    return tuple(rules)


def _check(own: Policy) -> None:
    if own.listener_path or any(rule.action == NOTIFY for rule in own.rules):
        raise UngateableError("its seccomp policy has a listener of its own")
    if own.default_errno is not None:
        raise UngateableError("its seccomp policy has a default errno, which NRI does not carry")
    if own.default_action == _TRACE:
        raise UngateableError("its seccomp policy sends calls to a tracer")
    if unknown := set(own.architectures) - _KNOWN_ARCHITECTURES:
        raise UngateableError(f"its seccomp policy has the architecture {min(unknown)}")


def _check_rules(own: Policy, calls: Iterable[str]) -> None:
    """Raise UngateableError for rules of gated calls that cannot be merged.

    A tracer can let a traced call continue. libseccomp cuts conditions to 32 bits on 32-bit
    architectures, and loses those of `socket` in the rule that it derives for `socketcall`.
    """
    for rule in own.rules:
        for name in sorted(set(rule.names).intersection(calls)):
            if rule.action == _TRACE:
                raise UngateableError(f"its seccomp policy sends {name} to a tracer")
            allowed = rule.action in _PERMISSIVE
            if not rule.comparisons or (name == "socket" and (allowed or _is_default(own, rule))):
                continue
            cut = {_I386} if name == "socket" else _32_BIT
            if not cut.isdisjoint(own.architectures):
                raise UngateableError(
                    f"its seccomp policy has conditions on {name} for 32-bit programs too"
                )


def _gated_calls(architectures: Sequence[str]) -> Iterable[tuple[str, list[Box]]]:
    """Yield each gated call with the disjoint boxes for which it is gated."""
    small = _32_BIT.intersection(architectures)
    for name, condition in GATED.items():
        gated = _gated_boxes(condition)
        if name == "mmap" and _I386 in small:
            gated = disjoint([box(0, _BIT_63), *gated])
        if name == "shmctl" and small - {_X32}:
            gated = [EVERYTHING]
        yield name, gated
    if small:
        yield "mmap2", _gated_boxes(GATED["mmap"])
    if _I386 in small:
        yield "ipc", [box(0, pattern) for pattern in _IPC_CALLS]
        yield "socketcall", [box(0, _NEW_SOCKET)]


_BIT_63: Final = BitPattern(1 << 63, 1 << 63)
_IPC_CALLS: Final = tuple(BitPattern(IPC_MASK, call) for call in (IPC_SHMAT, IPC_SHMCTL))
_NEW_SOCKET: Final = BitPattern((1 << 32) - 1, SYS_SOCKET)


def _gated_boxes(condition: ArgumentCondition | None) -> list[Box]:
    if condition is None:
        return [EVERYTHING]
    return disjoint(box(condition.argument, pattern) for pattern in condition.patterns)


def _is_default(own: Policy, rule: Rule) -> bool:
    """Return whether a rule has the default action, and so is left out by the runtime."""
    return rule.action == own.default_action and rule.errno in (None, errno.EPERM)


def _contradicts(own: Policy, rules: Iterable[Rule], name: str) -> bool:
    """Return whether some calls of this name are gated and others have a rule without the gate."""
    actions = {rule.action for rule in rules if name in rule.names and not _is_default(own, rule)}
    return NOTIFY in actions and len(actions) > 1


def _boxes(rule: Rule) -> list[Box]:
    """Return the matching calls of a rule, as a union."""
    if not rule.comparisons:
        return [EVERYTHING]
    unions = []
    for argument, value, value_two, operator in rule.comparisons:
        if argument >= len(EVERYTHING):
            raise UngateableError(f"its seccomp policy has a condition on argument {argument}")
        try:
            patterns = comparison(operator, value, value_two)
        except ValueError as error:
            raise UngateableError(f"its seccomp policy has a condition: {error}") from error
        unions.append([box(argument, pattern) for pattern in patterns])
    if len({condition.argument for condition in rule.comparisons}) < len(unions):
        return [part for union in unions for part in union]
    matched = [EVERYTHING]
    for union in unions:
        matched = intersect(matched, union)
    return matched


def _rules(
    name: str,
    gated: Sequence[Box],
    permitted: Sequence[tuple[str, list[Box]]],
    denied: Sequence[Box],
    default: str,
) -> Iterable[Rule]:
    """Yield the rules for a gated call: its gated part, and the rest by action."""
    done: list[Box] = list(denied)
    for action, boxes in permitted:
        allowed = subtract(disjoint(boxes), done)
        done += allowed
        parts = [(NOTIFY, part) for part in intersect(allowed, gated)]
        if action != default:
            parts += [(action, part) for part in subtract(allowed, gated)]
        for part_action, part in parts:
            yield _rule(name, part_action, part)


def _rule(name: str, action: str, part: Box) -> Rule:
    return Rule(
        (name,),
        action,
        tuple(
            Comparison(argument, pattern.mask, pattern.value, "SCMP_CMP_MASKED_EQ")
            for argument, pattern in enumerate(part)
            if pattern != ANY
        ),
    )
