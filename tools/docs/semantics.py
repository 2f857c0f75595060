"""Write `docs/semantics.md`: each rule, the tests that show it, its level today, and the gaps.

A test names its rules with `@pytest.mark.rule("P5", "P8", level="Converge")`, and this module reads
the tests as text. A test without a level shows the rule in a pure part only, which enforces nothing
yet (H1). Rules of shared memory are counted rather than enforced: `backing=` names the kinds of
object of a test on a real kernel. `make docs` writes the file; a test fails if the file is not up
to date.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pinwarden.api.sharedmemorygroup import Backing

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "semantics.md"


class Rule(NamedTuple):
    """A rule in a line, and the part that is still missing."""

    title: str
    missing: str


_UNGATED = "pods without the seccomp gate's profile"
_GATE = (
    "pods without the seccomp gate's profile, and pins by drivers: a gate that sees each pin (eBPF)"
)
_LEDGER = "a ledger of what drivers pin"
RULES: dict[str, Rule] = {
    "P1": Rule(
        "The subject is a cgroup: the sum over everything in a pod", f"no overshoot in {_GATE}"
    ),
    "P2": Rule(
        "Every kind of pin counts into one total",
        "AF_XDP, perf, udmabuf, SHM_LOCK and zero-copy sends, which are in no per-process "
        f"counter: {_LEDGER}",
    ),
    "P3": Rule("The one who pins pays", "address spaces that tasks of two cgroups share"),
    "P4": Rule(
        "Two payers for a shared page", "driver pins, seen so far only where they are in VmPin"
    ),
    "P5": Rule(
        "Denied at the call, and a pin that fits is not denied",
        f"exactness in {_GATE}",
    ),
    "P6": Rule("The charge lives as long as the pin", f"pins that outlive a process: {_LEDGER}"),
    "P7": Rule(
        "Two ways to count, the user chooses", "OncePerPod, rejected as NotSupported until then"
    ),
    "P8": Rule("mlock is the kernel's VMA accounting", ""),
    "P9": Rule("Payer unknown: the node's system account", _LEDGER),
    "P10": Rule(
        "A task that moves takes its locked memory with it",
        f"what stays where it was pinned: {_LEDGER}",
    ),
    "P11": Rule("A limit below today's use evicts nothing", "other reactions than denying"),
    "P12": Rule("Raising works live", ""),
    "P13": Rule("Limits are constraints, and all hold", "constraints on a subset of sources"),
    "P14": Rule("A limit takes, only a grant gives", ""),
    "M1": Rule("A group's instance is the object", ""),
    "M2": Rule("No processes inside", f"denying private mappings, and non-members in {_UNGATED}"),
    "M3": Rule("Two counters: charge and borrow", ""),
    "M4": Rule("Borrow accounting is opt-in", ""),
    "M5": Rule("Nobody is punished for another's pages", ""),
    "M6": Rule("A mapping is a loan", ""),
    "M7": Rule("A pin is a loan that outlives the mapping", f"all of it: {_LEDGER}"),
    "M8": Rule("Three limits", f"pinLimit: {_LEDGER}; denying at borrowLimit in {_UNGATED}"),
    "M9": Rule(
        "No hidden zombies",
        "bytes on dead cgroups for memfd, sysvShm, hugetlbfs, and posixShm in pods",
    ),
    "M10": Rule("A group with pins pending does not go", f"waiting for pins: {_LEDGER}"),
    "M11": Rule("The fair view", ""),
    "H1": Rule("A limit is reported as enforced only where it is", "Deny beyond gated pods; Kill"),
    "H2": Rule("Sampled, stale and partial numbers are labelled", ""),
    "H3": Rule("Limits outlive the operator, the API server and the network", ""),
}


BACKINGS: Final = tuple(Backing.model_fields[name].alias or name for name in Backing.model_fields)
BY_BACKING: Final = tuple(f"M{number}" for number in range(1, 12) if number != 7)
"""The rules that apply to every kind of object."""


class Shown(NamedTuple):
    """A test that names a rule, at a level or for kinds of objects (`backings`)."""

    test: str
    rule: str
    level: str | None
    backings: tuple[str, ...] = ()


def shown(folder: Path) -> Iterator[Shown]:
    """Yield every rule that a test below `folder` names.

    Raises:
        KeyError: a test names a rule that does not exist.
    """
    for path in sorted(folder.rglob("test_*.py")):
        file = path.relative_to(folder.parent).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for mark in _rule_marks(node):
                    options = {
                        word.arg: ast.literal_eval(word.value) for word in mark.keywords if word.arg
                    }
                    backings = tuple(options.get("backing", "").split())
                    for rule in map(ast.literal_eval, mark.args):
                        _ = RULES[rule]
                        yield Shown(f"{file}::{node.name}", rule, options.get("level"), backings)


def _rule_marks(test: ast.FunctionDef) -> Iterator[ast.Call]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.rule":
            yield decorator


def document() -> str:
    """Return the text of `docs/semantics.md`."""
    found = list(shown(ROOT / "tests"))
    lines = [
        "# The rules, and how far each is kept today",
        "",
        "Generated by `make docs` from the marks of the tests; do not edit. The column *today* "
        "says:",
        "",
        "- a level (Deny, Kill, Converge, Observe): a test shows the rule on a real kernel;",
        "- *counted*: a test shows the right count on a real kernel;",
        "- *pure part*: a test shows the reasoning, and nothing enforces the rule yet.",
        "",
        "[enforcement.md](enforcement.md) says what is enforced at which level, and what is not.",
        "",
        "| rule | says | today | still missing |",
        "| --- | --- | --- | --- |",
    ]
    for number, rule in RULES.items():
        marks = [mark for mark in found if mark.rule == number]
        levels = sorted({mark.level for mark in marks if mark.level})
        counted = ["counted"] if any(mark.backings for mark in marks) else []
        today = ", ".join([*levels, *counted]) or ("pure part" if marks else "nothing")
        lines.append(f"| {number} | {rule.title} | {today} | {rule.missing or 'nothing'} |")
    lines += ["", "## Shared memory: rules and kinds of object", "", *_matrix(found)]
    lines += ["", "## The tests", ""]
    for number in RULES:
        tests = sorted({mark.test for mark in found if mark.rule == number})
        lines += [f"- **{number}**", *(f"  - `{test}`" for test in tests)] if tests else []
    return "\n".join(lines) + "\n"


def _matrix(found: Sequence[Shown]) -> Iterator[str]:
    """Yield the table of backings and rules: shown by a test on a real kernel, or missing."""
    yield f"| backing | {' | '.join(BY_BACKING)} |"
    yield "| --- " * (len(BY_BACKING) + 1) + "|"
    for backing in BACKINGS:
        cells = []
        for rule in BY_BACKING:
            is_shown = any(mark.rule == rule and backing in mark.backings for mark in found)
            cells.append("shown" if is_shown else "**missing**")
        yield f"| {backing} | {' | '.join(cells)} |"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
