"""An upper bound for the length of a policy's BPF program. Pure.

The kernel rejects a program of more than 4,096 instructions (`BPF_MAXINSNS`), and the runtime then
cannot start the container. All filters of a task may have 32,768 (`MAX_INSNS_PER_PATH`), so the
container can still add filters. libseccomp builds the program (`gen_bpf.c`, 2.5 and 2.6). For each
architecture, a program has

- a comparison for each call, and at most half as many again for a binary tree;
- for each condition, a comparison of each 32-bit half of the argument, and up to one more. A
  comparison loads, masks up to twice, compares, and may need a long jump. Rules of a call share the
  comparisons of their equal first conditions;
- on i386, the rules of 32 calls again for `socketcall` and `ipc`.

A jump reaches 255 instructions, so each answer is repeated at least that often. The bound is about
twice the length of ordinary programs.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pinwarden.node.seccomp.policy import Policy, Rule

Path = tuple[object, ...]
MOST_INSTRUCTIONS: Final = 4096
_REACH: Final = 255
_COMPARISON: Final = 5
_ARCHITECTURE: Final = 32
"""The checks of an architecture, and the long jumps of its binary tree."""
_PROLOGUE: Final = 32
"""The program of runc for calls that are newer than the policy (`patchbpf`)."""
_I386: Final = "SCMP_ARCH_X86"
_32_BIT: Final = frozenset({_I386, "SCMP_ARCH_X32", "SCMP_ARCH_ARM"})
_EQUAL: Final = "SCMP_CMP_EQ"
_EQUALITIES: Final = (_EQUAL, "SCMP_CMP_MASKED_EQ")
_FULL: Final = (1 << 64) - 1
_LOW: Final = (1 << 32) - 1
_SOCKETCALL: Final = (
    *("accept", "bind", "connect", "getpeername", "getsock", "listen", "recv"),
    *("send", "setsockopt", "shutdown", "socket"),
)
_MULTIPLEXED: Final = (*_SOCKETCALL, "msg", "sem", "shm")
"""How the calls of `socketcall` and `ipc` begin, and few others."""


def most_instructions(policy: "Policy", native: str) -> int:
    """Return a bound that the program of a policy does not exceed.

    `native` is the machine's architecture, which libseccomp adds to those of the policy.
    """
    names = {name for rule in policy.rules for name in rule.names}
    answers = {(rule.action, rule.errno) for rule in policy.rules}
    length = _PROLOGUE + (len(answers) + 2) * (MOST_INSTRUCTIONS // _REACH + 1)
    for architecture in {native, *policy.architectures}:
        comparisons = len(set(_comparisons(policy.rules, architecture)))
        length += _ARCHITECTURE + len(names) * 3 // 2 + comparisons * _COMPARISON
    return length


def _comparisons(rules: "Iterable[Rule]", architecture: str) -> Iterator[Path]:
    """Yield each comparison as the path to it from its call. Equal paths are one comparison."""
    small = architecture in _32_BIT
    for number, rule in enumerate(rules):
        for name in rule.names:
            yield from _path((name,), number, rule, small=small)
            if architecture == _I386 and name.startswith(_MULTIPLEXED):
                yield (_I386, name)
                yield from _path((_I386, name), number, rule, small=small)


def _path(path: Path, number: int, rule: "Rule", *, small: bool) -> Iterator[Path]:
    for argument, value, value_two, operator in sorted(rule.comparisons):
        if operator in _EQUALITIES:
            mask, bits = (_FULL, value) if operator == _EQUAL else (value, value_two)
            halves = [(mask >> shift & _LOW, bits >> shift & _LOW) for shift in (32, 0)]
        else:
            halves = [(number, -half) for half in (1, 2, 3)]
        for half in halves[-1:] if small else halves:
            path = (*path, (argument, *half))
            yield path
