"""The claims of the demo, each with a function that shows it.

The function runs commands and checks the answers; it raises `ClaimError` if an answer contradicts
the claim. The pods run `examples/demo/pinner.py`, which locks as much memory as the kernel allows.
All pods of an act are on one node.
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
"""A change of use below this share of the limit causes no report."""
DENIED = "Cannot allocate memory"
_VMLCK = (
    'from pathlib import Path; print(*(line for status in Path("/proc").glob("[0-9]*/status") '
    'for line in status.read_text().splitlines() if line.startswith("VmLck")), sep="\\n")'
)
"""A program that prints the line of each process of a pod; the image has no shell."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A title with its rules, and the function that shows the claim."""

    title: str
    show: Callable[[Shell], None]


def _apply(shell: Shell, name: str) -> None:
    shell.run(f"kubectl -n {NAMESPACE} apply -f examples/demo/{name}.yaml")


def _set_limit(shell: Shell, name: str, amount: str) -> None:
    patch = json.dumps({"spec": {"limit": amount}})
    shell.run(f"kubectl -n {NAMESPACE} patch pinlimit {name} --type=merge -p '{patch}'")


def _locks(shell: Shell, pod: str, amount: int, then: str) -> None:
    """Wait until the pod's log says that it has locked `amount` bytes, and then `then`."""

    def wanted(log: str) -> bool:
        line = re.search(r"holds (\d+) bytes; (.*)", log)
        return line is not None and int(line[1]) == amount and then in line[2]

    shell.until_logged(
        f"kubectl -n {NAMESPACE} logs {pod}", 1, wanted, f"{pod} locks {amount} bytes, then: {then}"
    )


def _status(
    shell: Shell, resource: str, wanted: Callable[[dict[str, Any]], bool], fields: str, text: str
) -> dict[str, Any]:
    """Wait for the wanted status, described by `text`, and show its `fields` (JSONPath)."""
    kind, _, name = resource.partition("/")
    status: dict[str, Any] = {}

    def check(whole: dict[str, Any]) -> bool:
        status.update(whole.get("status", {}))
        current = status.get("observedGeneration") == whole["metadata"]["generation"]
        return current and wanted(status)

    try:
        shell.wait(f"kubectl -n {NAMESPACE} get {kind}", name, check, f"{resource}: {text}")
    finally:
        shell.run(f"kubectl -n {NAMESPACE} get {resource} -o jsonpath='{fields}'")
    return status


def _condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    for condition in status.get("conditions", []):
        if condition["type"] == kind:
            return condition["status"], condition["reason"]
    return "", ""


def _conditions(*kinds: str) -> str:
    """Return a JSONPath that prints a line for each of these conditions."""
    return "".join(
        f'{{range .status.conditions[?(@.type=="{kind}")]}}'
        '{.type}={.status} {.reason}: {.message}{"\\n"}{end}'
        for kind in kinds
    )


def denied_at_the_limit(shell: Shell) -> None:
    """P5: the kernel denies one process with ENOMEM exactly at the limit."""
    _apply(shell, "one")
    _locks(shell, "one", 4 * MIB, DENIED)
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
    _locks(shell, "one", 6 * MIB, DENIED)


def a_ceiling_applies(shell: Shell) -> None:
    """P13: the namespace's 8 MiB and the administrator's 7 MiB both apply."""
    _apply(shell, "ceiling")
    _set_limit(shell, "one", "8Mi")
    _locks(shell, "one", 7 * MIB, DENIED)
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
    _locks(shell, "one", 7 * MIB, DENIED)


def restored(shell: Shell) -> None:
    """P14, H3: deleting a limit ends enforcement and restores the runtime's limit."""
    shell.run(f"kubectl -n {NAMESPACE} delete pinlimit/one clusterpinlimit/demo-ceiling")
    _locks(shell, "one", 8 * MIB, DENIED)


def audit_changes_nothing(shell: Shell) -> None:
    """P13: audit evaluates and changes no process."""
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
        raise ClaimError(f"the process's limits are {limits}, not the runtime's")


def _total(shell: Shell, pod: str = "race") -> int:
    """Return the locked bytes of all processes of a pod, as the kernel shows them in the pod."""
    text = shell.run(f"kubectl -n {NAMESPACE} exec {pod} -- python3 -IS -c '{_VMLCK}'")
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines())


def _settled(shell: Shell, least: int, pod: str = "race") -> None:
    """Wait until all four processes are denied or finished and lock `least` bytes together."""

    def wanted(log: str) -> bool:
        locked = dict(
            re.findall(rf"process (\d+): holds (\d+) bytes; .*(?:{DENIED}|all it wanted)", log)
        )
        return len(locked) == 4 and sum(map(int, locked.values())) >= least

    shell.until_logged(
        f"kubectl -n {NAMESPACE} logs {pod}",
        8,
        wanted,
        f"four processes of {pod} are denied or finished, and lock {least} bytes or more",
    )


def four_processes_reserve(shell: Shell) -> None:
    """P1: with Reserve the sum of the allowances never exceeds the limit."""
    _apply(shell, "race")
    _settled(shell, 1)
    total = _total(shell)
    shell.say(
        f"  -> {total} bytes together, never more than {4 * MIB}; "
        f"without a limit, each process could lock {8 * MIB}"
    )
    if not 0 < total <= 4 * MIB:
        raise ClaimError(f"the pod locks {total} bytes with a limit of {4 * MIB} and Reserve")


def four_processes_race(shell: Shell) -> None:
    """P1, H2: with Share no process is denied early; the overshoot of a race is reported."""
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
        raise ClaimError(f"the race locked {total} bytes, the runtime's limit: there was no limit")
    if excess and "overshoot" not in status:
        shell.say(f"  -> overshoot at this level (Converge): {excess} bytes, not sampled yet")
    elif excess:
        seconds = status["overshoot"]["seconds"]
        shell.say(f"  -> overshoot at this level (Converge): {excess} bytes for {seconds} s so far")
    else:
        shell.say("  -> no overshoot this time; at this level (Converge) a race can have one")


def grants(shell: Shell) -> None:
    """P14: a grant raises the limit up to the administrator's maxGrant, and reports the cut."""
    _apply(shell, "grants")
    _locks(shell, "one", 12 * MIB, DENIED)
    _granted(shell, "True")
    _set_limit(shell, "granted", "24Mi")
    _locks(shell, "one", 16 * MIB, DENIED)
    _granted(shell, "False")


def _granted(shell: Shell, value: str) -> None:
    _status(
        shell,
        "pinlimit/granted",
        lambda status: _condition(status, "Granted")[0] == value,
        _conditions("Granted"),
        f"Granted {value}",
    )


def a_capability_is_reported(shell: Shell) -> None:
    """H1: a pod that the kernel exempts from the limit is not reported as enforced."""
    _apply(shell, "capable")
    _locks(shell, "capable", 10 * MIB, "all it wanted")
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


def denied_for_the_whole_pod(shell: Shell) -> None:
    """P1, P5: four racing processes are limited exactly, from their first instruction."""
    _apply(shell, "gated")
    shell.run(f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod/gated --timeout=600s")
    _limited_exactly(shell, 4 * MIB)
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
        f"kubectl -n {NAMESPACE} get events "
        "--field-selector reason=PinRefused,involvedObject.name=gated"
        " -o custom-columns=OBJECT:.involvedObject.name,MESSAGE:.message",
        lambda text: "PinLimit pinwarden-demo/gated" in text,
        "an Event of the pod names the limit",
    )


def _limited_exactly(shell: Shell, limit: int) -> None:
    _settled(shell, limit, "gated")
    total = _total(shell, "gated")
    if total != limit:
        raise ClaimError(f"the pod locks {total} bytes with a limit of {limit}")
    shell.say(f"  -> {total} bytes together: exactly the limit")


def raised_for_the_whole_pod(shell: Shell) -> None:
    """P12: the raised limit applies to the next call of the running processes."""
    _set_limit(shell, "gated", "6Mi")
    _limited_exactly(shell, 6 * MIB)


def the_agent_reports_the_same(shell: Shell) -> None:
    """H1, H2: the agent on the node reports the same levels and figures."""
    node = shell.run(
        f"kubectl -n {NAMESPACE} get pod gated -o jsonpath='{{.spec.nodeName}}'"
    ).strip()
    agent = shell.run(
        f"kubectl -n pinwarden-system get pod -l {AGENT_SELECTOR} "
        f"--field-selector spec.nodeName={node} -o name"
    ).split()[0]
    text = shell.run(f"kubectl -n pinwarden-system exec {agent} -c agent -- pinwarden status")
    for wanted in ("Deny", "SeccompGate", "Converge", "Observe", "CapIPCLock"):
        if wanted not in text:
            raise ClaimError(f"the agent's status does not contain {wanted}")


PINNED = (
    Claim(
        "A process that exceeds its limit gets ENOMEM, exactly at the limit (P5)",
        denied_at_the_limit,
    ),
    Claim("A raised limit reaches the running process at once (P12)", raised_live),
    Claim(
        "An administrator's lower limit applies beside a namespace's limit (P13)", a_ceiling_applies
    ),
    Claim(
        "A limit below the present use evicts nothing and reports the excess (P11)",
        lowered_below_use,
    ),
    Claim("Deleting a limit restores the runtime's limit (P14)", restored),
    Claim("An Audit limit reports the excess and changes no process (P13)", audit_changes_nothing),
    Claim(
        "With Reserve, four racing processes never exceed the pod's limit (P1)",
        four_processes_reserve,
    ),
    Claim(
        "With Share, they may overshoot for a moment, and the overshoot is reported (P1, H2)",
        four_processes_race,
    ),
    Claim("A grant raises the limit up to the administrator's maxGrant (P14)", grants),
    Claim("A pod with CAP_IPC_LOCK is reported as not enforced (H1)", a_capability_is_reported),
    Claim(
        "The gate denies exactly at the limit of a pod whose manifest says nothing of it (P1, P5)",
        denied_for_the_whole_pod,
    ),
    Claim(
        "A raised limit reaches the gated pod at once, exact to the page (P12)",
        raised_for_the_whole_pod,
    ),
    Claim("The agent on the node reports the same levels (H1, H2)", the_agent_reports_the_same),
)
"""The first act."""

SHARED = (
    Claim(
        "Three pods share an object: one charge, and a borrow of each pod (M3, M5)",
        shared.three_pods_share,
    ),
    Claim("A pod's borrow follows its mappings up and down (M6)", shared.borrow_follows_mappings),
    Claim(
        "A mapping that would exceed the borrow limit is denied (M8)", shared.a_borrow_limit_denies
    ),
    Claim("A pod that is no member cannot map the object (M2)", shared.a_stranger_is_denied),
    Claim("The shared memory is not charged to the pod that wrote it (M11)", shared.the_fair_view),
    Claim("Memory of a deleted pod stays counted, as orphaned (M1, M9)", shared.orphaned_not_lost),
    Claim(
        "A deleted group waits for its last borrower, and then disappears (M10)", shared.draining
    ),
)
"""The second act."""
