"""The second act: an object of shared memory, whose it is, and what each pod borrows of it (M1 to M11)."""

import re
from typing import Any

from demo.shell import ClaimError, Shell

NAMESPACE = "pinwarden-demo"
MIB = 2**20
CAPACITY = 32 * MIB
_TABLE = (
    r'{range .status.borrowers[*]}{.pod}{"\tborrowed "}{.borrowedBytes}{"\tmapped "}{.mappedBytes}{"\tlimit "}{.limitBytes}'
    r'{"\tlevel "}{.level}{"\tdenials "}{.denials}{"\n"}{end}'
)
_GROUPS = f"kubectl -n {NAMESPACE} get sharedmemorygroup"
_GROUP = f"{_GROUPS} cache"


def _order(shell: Shell, pod: str, mebibytes: int) -> None:
    shell.run(f"kubectl -n {NAMESPACE} annotate pod {pod} mebibytes={mebibytes} --overwrite")


def _says(shell: Shell, pod: str, mebibytes: int, then: str = "") -> None:
    """The pod's own words."""

    def wanted(log: str) -> bool:
        found = re.search(r"maps (\d+) bytes(.*)", log)
        return found is not None and int(found[1]) == mebibytes * MIB and then in found[2]

    shell.until_logged(
        f"kubectl -n {NAMESPACE} logs {pod}",
        1,
        wanted,
        f"{pod} maps {mebibytes} MiB{then and ', then: '}{then}",
    )


def _status(shell: Shell, **borrowed: int) -> dict[str, Any]:
    """Wait until exactly these pods borrow so many MiB each, and show the group and the table."""
    found: dict[str, Any] = {}

    def check(group: dict[str, Any]) -> bool:
        found.clear()
        found.update(group.get("status", {}))
        now = {each["pod"]: each.get("borrowedBytes") for each in found.get("borrowers", [])}
        return now == {pod: amount * MIB for pod, amount in borrowed.items()}

    try:
        shell.wait(_GROUPS, "cache", check, f"borrowers and their MiB: {borrowed}")
    finally:
        shell.run(_GROUP)
        shell.run(f"{_GROUP} -o jsonpath='{_TABLE}'")
    return found


def prepare(shell: Shell) -> None:
    """Apply the objects of this act, so that its pods start during the first one."""
    shell.run(
        f"kubectl annotate namespace {NAMESPACE} pinwarden.io/allow-shared-memory=create:64Mi --overwrite"
    )
    shell.run(
        f"kubectl -n {NAMESPACE} create configmap borrower --from-file=examples/demo/borrower.py"
        " --dry-run=client -o yaml | kubectl apply -f -"
    )
    shell.run(
        f"kubectl -n {NAMESPACE} apply -f examples/demo/shared.yaml -f examples/demo/borrowers.yaml"
    )


def three_pods_share(shell: Shell) -> None:
    """M1, M3, M5: one charge, whoever writes; each pod borrows what it has mapped."""
    shell.run(
        f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod -l demo=borrower --timeout=600s"
    )
    _order(shell, "reader", 8)
    _says(shell, "reader", 8)
    _status(shell, reader=8)
    _order(shell, "writer", 32)
    _order(shell, "greedy", 4)
    _says(shell, "writer", 32)
    status = _status(shell, writer=32, reader=8, greedy=4)
    if status.get("chargeBytes") != CAPACITY:
        raise ClaimError(f"the object's charge is {status.get('chargeBytes')}, not {CAPACITY}")
    shell.say(
        "  -> the charge is one number, 32 MiB; that the writer wrote all of it changed nothing for the reader"
    )


def a_mapping_is_a_loan(shell: Shell) -> None:
    """M6: borrow goes up and down with mmap and munmap."""
    _order(shell, "reader", 12)
    _says(shell, "reader", 12)
    _status(shell, writer=32, reader=12, greedy=4)
    _order(shell, "reader", 2)
    _says(shell, "reader", 2)
    _status(shell, writer=32, reader=2, greedy=4)


def a_borrow_limit_refuses(shell: Shell) -> None:
    """M8: a mapping that would pass the pod's limit fails."""
    _order(shell, "greedy", 24)
    _says(shell, "greedy", 16, "Cannot allocate memory")
    _status(shell, writer=32, reader=2, greedy=16)
    _order(shell, "greedy", 4)
    _says(shell, "greedy", 4)


def a_stranger_is_refused(shell: Shell) -> None:
    """M2: only an attached pod may borrow, whatever its volumes are."""
    _order(shell, "stranger", 1)
    _says(shell, "stranger", 0, "Permission denied")
    _order(shell, "stranger", 0)
    _status(shell, writer=32, reader=2, greedy=4)


def the_fair_view(shell: Shell) -> None:
    """M11: the kernel charges the pod for its own; beside it stands what it borrows."""

    def wanted(text: str) -> bool:
        found = re.findall(r"current (\d+).*borrowed (\d+)", text)
        return any(int(shared) == CAPACITY and int(current) < CAPACITY for current, shared in found)

    shell.until(
        'kubectl get nodepinconfigs -o jsonpath=\'{range .items[*]}{range .status.fairView[*]}{.pod}{"\\tmemory.current "}{.current}'
        '{"\\town anonymous "}{.anonymous}{"\\tborrowed "}{.shared}{"\\n"}{end}{end}\'',
        wanted,
        f"a pod with less than {CAPACITY} bytes current that borrows {CAPACITY}",
    )
    shell.say(
        "  -> the writer's 32 MiB are in no pod's memory.current: the group's own cgroup pays for them"
    )


def orphaned_not_lost(shell: Shell) -> None:
    """M1, M9: the object outlives the pod that wrote it, and what nobody has mapped is shown."""
    shell.run(f"kubectl -n {NAMESPACE} delete pod writer greedy")
    status = _status(shell, reader=2)
    if (status.get("chargeBytes"), status.get("orphanedBytes")) != (CAPACITY, CAPACITY - 2 * MIB):
        raise ClaimError(
            f"charge {status.get('chargeBytes')}, orphaned {status.get('orphanedBytes')}"
        )


def draining(shell: Shell) -> None:
    """M10: a deleted group waits for its last borrower, says so, and then goes with its object."""
    shell.run(f"kubectl -n {NAMESPACE} delete sharedmemorygroup cache --wait=false")
    shell.until(
        f"{_GROUP} -o jsonpath='{{.status.phase}}: {{.status.conditions[?(@.type==\"Drained\")].message}}'",
        lambda text: text.startswith("Draining") and "reader" in text,
        "Draining, and why: reader",
    )
    _order(shell, "reader", 0)
    shell.run(f"kubectl -n {NAMESPACE} delete pod reader stranger")
    shell.until(
        f"{_GROUP} --ignore-not-found -o name", lambda text: not text.strip(), "the group is gone"
    )
    shell.run("kubectl delete persistentvolume demo-shared --wait=false")
