"""What pinwarden claims, and how each claim is seen.

A claim is a function: it types commands, checks the answers, and raises `ClaimError` when one does not bear the claim out. The pods run
`examples/demo/pinner.py`, which locks all that the kernel gives. The pods of an act are all on one node.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo import shared
from demo.shared import MIB, NAMESPACE
from demo.shell import ClaimError, Shell
from pinwarden.plan.decode import AGENT_SELECTOR

PODS = 3
UNREPORTED_SHARE = 0.02
"""A use that moves by less than this share of its limit is not worth a report of its own."""
REFUSED = "Cannot allocate memory"
_VMLCK = (
    'from pathlib import Path; print(*(line for status in Path("/proc").glob("[0-9]*/status") '
    'for line in status.read_text().splitlines() if line.startswith("VmLck")), sep="\\n")'
)
"""What the pods run to show the line of each of their processes: the image has no shell."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A title with the rules that it shows, and the function that shows it."""

    title: str
    show: Callable[[Shell], None]


def _apply(shell: Shell, name: str) -> None:
    shell.run(f"kubectl -n {NAMESPACE} apply -f examples/demo/{name}.yaml")


def _set_limit(shell: Shell, name: str, amount: str) -> None:
    patch = json.dumps({"spec": {"limit": amount}})
    shell.run(f"kubectl -n {NAMESPACE} patch pinlimit {name} --type=merge -p '{patch}'")


def _holds(shell: Shell, pod: str, amount: int, then: str) -> None:
    """The pod's own words: it holds `amount` bytes, and `then` happened."""

    def wanted(log: str) -> bool:
        found = re.search(r"holds (\d+) bytes; (.*)", log)
        return found is not None and int(found[1]) == amount and then in found[2]

    shell.until_logged(
        f"kubectl -n {NAMESPACE} logs {pod}", 1, wanted, f"{pod} holds {amount} bytes, then: {then}"
    )


def _status(
    shell: Shell, resource: str, wanted: Callable[[dict[str, Any]], bool], fields: str, what: str
) -> dict[str, Any]:
    """Wait until the status is as wanted, then show those of its `fields` (JSONPath) that tell the story."""
    kind, _, name = resource.partition("/")
    found: dict[str, Any] = {}

    def check(whole: dict[str, Any]) -> bool:
        found.update(whole.get("status", {}))
        current = found.get("observedGeneration") == whole["metadata"]["generation"]
        return current and wanted(found)

    try:
        shell.wait(f"kubectl -n {NAMESPACE} get {kind}", name, check, f"{resource}: {what}")
    finally:
        shell.run(f"kubectl -n {NAMESPACE} get {resource} -o jsonpath='{fields}'")
    return found


def _condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    for condition in status.get("conditions", []):
        if condition["type"] == kind:
            return condition["status"], condition["reason"]
    return "", ""


def _conditions(*kinds: str) -> str:
    """JSONPath that prints a line for each of these conditions."""
    return "".join(
        f'{{range .status.conditions[?(@.type=="{kind}")]}}{{.type}}={{.status}} {{.reason}}: {{.message}}{{"\\n"}}{{end}}'
        for kind in kinds
    )


def refused_at_the_limit(shell: Shell) -> None:
    """P5: one process is refused with ENOMEM at exactly the limit."""
    _apply(shell, "one")
    _holds(shell, "one", 4 * MIB, REFUSED)
    _status(
        shell,
        "pinlimit/one",
        lambda status: (
            status.get("pinnedBytes") == 4 * MIB
            and _condition(status, "Enforced")[0] == "True"
            and _condition(status, "WithinLimit")[0] == "True"
        ),
        _conditions("Applied", "Enforced", "WithinLimit"),
        "4 MiB pinned, Enforced and WithinLimit True",
    )
    shell.run(f"kubectl -n {NAMESPACE} get pinlimit one")


def raised_live(shell: Shell) -> None:
    """P12: a raised limit reaches the running process."""
    _set_limit(shell, "one", "6Mi")
    _holds(shell, "one", 6 * MIB, REFUSED)


def a_ceiling_holds(shell: Shell) -> None:
    """P13: the namespace's 8 MiB and the administrator's 7 MiB both hold."""
    _apply(shell, "ceiling")
    _set_limit(shell, "one", "8Mi")
    _holds(shell, "one", 7 * MIB, REFUSED)
    shell.run("kubectl get clusterpinlimit demo-ceiling")


def lowered_below_use(shell: Shell) -> None:
    """P11: a limit below use evicts nothing, and the excess is reported."""
    _set_limit(shell, "one", "2Mi")
    _status(
        shell,
        "pinlimit/one",
        lambda status: (
            _condition(status, "WithinLimit")[0] == "False"
            and _condition(status, "Applied")[0] == "True"
        ),
        _conditions("WithinLimit"),
        "WithinLimit False, Applied True",
    )
    _holds(shell, "one", 7 * MIB, REFUSED)


def given_back(shell: Shell) -> None:
    """P14, H3: enforcement ends by an explicit act, and the process gets back what the runtime gave it."""
    shell.run(f"kubectl -n {NAMESPACE} delete pinlimit/one clusterpinlimit/demo-ceiling")
    _holds(shell, "one", 8 * MIB, REFUSED)


def audit_touches_nothing(shell: Shell) -> None:
    """P13: audit evaluates beside the rest and touches nothing."""
    _apply(shell, "audited")
    _status(
        shell,
        "pinlimit/audited",
        lambda status: (
            status.get("pinnedBytes") == 8 * MIB
            and _condition(status, "Enforced") == ("False", "Audit")
            and _condition(status, "WithinLimit")[0] == "False"
        ),
        _conditions("Enforced", "WithinLimit"),
        "8 MiB pinned, Enforced False/Audit, WithinLimit False",
    )
    ask = "import resource; print(*resource.prlimit(1, resource.RLIMIT_MEMLOCK))"
    limits = shell.run(f"kubectl -n {NAMESPACE} exec one -- python3 -IS -c '{ask}'").split()
    if limits != [str(8 * MIB)] * 2:
        raise ClaimError(f"the process's limits are {limits}, not what the runtime gave it")


def _total(shell: Shell, pod: str = "race") -> int:
    """What all processes of a pod have locked, as the kernel shows it inside the pod, in bytes."""
    text = shell.run(f"kubectl -n {NAMESPACE} exec {pod} -- python3 -IS -c '{_VMLCK}'")
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines())


def _settled(shell: Shell, least: int, pod: str = "race") -> None:
    """Wait until each of the four racing processes is refused, or has all it wants, and they hold at least so many bytes together."""

    def wanted(log: str) -> bool:
        held = dict(
            re.findall(rf"process (\d+): holds (\d+) bytes; .*(?:{REFUSED}|all it wanted)", log)
        )
        return len(held) == 4 and sum(map(int, held.values())) >= least

    shell.until_logged(
        f"kubectl -n {NAMESPACE} logs {pod}",
        8,
        wanted,
        f"four processes of {pod} are refused, or have all they want, and hold {least} bytes or more",
    )


def four_processes_reserve(shell: Shell) -> None:
    """P1: with Reserve the allowances never sum past the limit."""
    _apply(shell, "race")
    _settled(shell, 1)
    total = _total(shell)
    shell.say(
        f"  -> together {total} bytes, never more than {4 * MIB}; alone, each could hold {8 * MIB}"
    )
    if not 0 < total <= 4 * MIB:
        raise ClaimError(f"the pod holds {total} bytes under a limit of {4 * MIB} with Reserve")


def four_processes_race(shell: Shell) -> None:
    """P1, H2: with Share nobody is refused early; what a race takes beyond the limit is measured and reported."""
    patch = json.dumps({"spec": {"contention": "Share", "limit": "12Mi"}})
    shell.run(f"kubectl -n {NAMESPACE} patch pinlimit race --type=merge -p '{patch}'")
    _settled(shell, 11 * MIB)
    total = _total(shell)
    excess = max(0, total - 12 * MIB)
    status = _status(
        shell,
        "pinlimit/race",
        lambda status: (
            abs(status.get("pinnedBytes", 0) - total) <= UNREPORTED_SHARE * 12 * MIB
            and status.get("overshoot", {}).get("peakBytes", 0)
            >= excess - UNREPORTED_SHARE * 12 * MIB
        ),
        _conditions("Enforced", "WithinLimit") + "overshoot: {.status.overshoot}",
        f"{total} bytes pinned, an overshoot of at least {excess} bytes",
    )
    if total >= 4 * 8 * MIB:
        raise ClaimError(f"the race took {total} bytes, all that the runtime gave: nothing held it")
    if excess and "overshoot" not in status:
        shell.say(
            f"  -> overshoot at this level (Converge): {excess} bytes, not seen by a sample yet"
        )
    elif excess:
        seconds = status["overshoot"]["seconds"]
        shell.say(
            f"  -> overshoot at this level (Converge): {excess} bytes, seen for {seconds} s so far"
        )
    else:
        shell.say("  -> no overshoot this time; at this level (Converge) a race can have one")


def grants(shell: Shell) -> None:
    """P14: a grant gives as far as the administrator allows, and says where it stops."""
    _apply(shell, "grants")
    _holds(shell, "one", 12 * MIB, REFUSED)
    _granted(shell, "True")
    _set_limit(shell, "granted", "24Mi")
    _holds(shell, "one", 16 * MIB, REFUSED)
    _granted(shell, "False")


def _granted(shell: Shell, value: str) -> None:
    _status(
        shell,
        "pinlimit/granted",
        lambda status: _condition(status, "Granted")[0] == value,
        _conditions("Granted"),
        f"Granted {value}",
    )


def a_capability_is_said(shell: Shell) -> None:
    """H1: a pod that the kernel lets past the limit is not called enforced."""
    _apply(shell, "capable")
    _holds(shell, "capable", 10 * MIB, "all it wanted")
    _status(
        shell,
        "pinlimit/capable",
        lambda status: (
            status.get("pinnedBytes") == 10 * MIB
            and _condition(status, "Enforced")[0] == "False"
            and any(
                pod.get("level") == "Observe" and pod.get("reason") == "CapIPCLock"
                for pod in status.get("topPods", [])
            )
        ),
        _conditions("Enforced", "WithinLimit"),
        "10 MiB pinned, Enforced False, a pod at Observe with CapIPCLock",
    )


def refused_for_the_whole_pod(shell: Shell) -> None:
    """P1, P5: four racing processes without any capability are held exactly, from their first instruction."""
    _apply(shell, "gated")
    shell.run(f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod/gated --timeout=600s")
    _held_exactly(shell, 4 * MIB)
    _status(
        shell,
        "pinlimit/gated",
        lambda status: (
            _condition(status, "Enforced")[0] == "True"
            and _condition(status, "WithinLimit")[0] == "True"
            and status.get("denials", 0) >= 4
            and any(pod.get("level") == "Deny" for pod in status.get("topPods", []))
        ),
        _conditions("Enforced", "WithinLimit")
        + "denials: {.status.denials}, level: {.status.topPods[0].level}",
        "Enforced and WithinLimit True, four denials, a pod at Deny",
    )
    shell.until(
        f"kubectl -n {NAMESPACE} get events --field-selector reason=PinRefused,involvedObject.name=gated"
        " -o custom-columns=OBJECT:.involvedObject.name,MESSAGE:.message",
        lambda text: "PinLimit pinwarden-demo/gated" in text,
        "an Event of the pod names the limit",
    )


def _held_exactly(shell: Shell, limit: int) -> None:
    _settled(shell, limit, "gated")
    total = _total(shell, "gated")
    if total != limit:
        raise ClaimError(f"the pod holds {total} bytes under a limit of {limit}")
    shell.say(f"  -> together {total} bytes: the limit, to the page")


def raised_for_the_whole_pod(shell: Shell) -> None:
    """P12: the raised limit holds for the next call of the running processes."""
    _set_limit(shell, "gated", "6Mi")
    _held_exactly(shell, 6 * MIB)


def the_node_says_the_same(shell: Shell) -> None:
    """H1, H2: the agent on the node, asked directly, tells the same story."""
    node = shell.run(
        f"kubectl -n {NAMESPACE} get pod gated -o jsonpath='{{.spec.nodeName}}'"
    ).strip()
    agent = shell.run(
        f"kubectl -n pinwarden-system get pod -l {AGENT_SELECTOR} --field-selector spec.nodeName={node} -o name"
    ).split()[0]
    text = shell.run(f"kubectl -n pinwarden-system exec {agent} -c agent -- pinwarden status")
    for wanted in ("Deny", "SeccompGate", "Converge", "Observe", "CapIPCLock"):
        if wanted not in text:
            raise ClaimError(f"the agent's own account does not say {wanted}")


PINNED = (
    Claim("One process is refused with ENOMEM exactly at the limit (P5)", refused_at_the_limit),
    Claim("A raised limit lets the running process go on (P12)", raised_live),
    Claim("An administrator's ceiling holds against a namespace's limit (P13)", a_ceiling_holds),
    Claim(
        "A limit lowered below use evicts nothing and reports the excess (P11)", lowered_below_use
    ),
    Claim("A deleted limit gives back what the runtime gave (P14)", given_back),
    Claim("Audit evaluates and touches nothing (P13)", audit_touches_nothing),
    Claim(
        "Four racing processes under Reserve never pass the pod's limit (P1)",
        four_processes_reserve,
    ),
    Claim(
        "Four racing processes under Share settle at it; the overshoot is reported (P1, H2)",
        four_processes_race,
    ),
    Claim("A grant gives as far as maxGrant allows, and no further (P14)", grants),
    Claim("A pod with CAP_IPC_LOCK is not called enforced (H1)", a_capability_is_said),
    Claim(
        "Four racing processes of a gated pod are refused exactly at its limit, and told why (P1, P5)",
        refused_for_the_whole_pod,
    ),
    Claim("A raised limit lets the gated pod go on to the page (P12)", raised_for_the_whole_pod),
    Claim("The agent on the node tells the same (H1, H2)", the_node_says_the_same),
)
"""The first act."""

SHARED = (
    Claim(
        "Three pods share one object: one charge, and a borrow for each (M3, M5)",
        shared.three_pods_share,
    ),
    Claim("A mapping is a loan: borrow goes up and down with it (M6)", shared.a_mapping_is_a_loan),
    Claim("A mapping past the borrow limit is refused (M8)", shared.a_borrow_limit_refuses),
    Claim("A pod that is no member is refused (M2)", shared.a_stranger_is_refused),
    Claim("The writer is not charged for what all share (M11)", shared.the_fair_view),
    Claim("What a deleted pod leaves is orphaned, not lost (M1, M9)", shared.orphaned_not_lost),
    Claim("A deleted group waits for its last borrower, and goes (M10)", shared.draining),
)
"""The second act."""
