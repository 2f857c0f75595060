"""The second act: an object of shared memory, its charge, and the borrows of pods (M1 to M11)."""

import re
from typing import Any

from demo.shell import ClaimError, Shell

NAMESPACE = "pinwarden-demo"
MIB = 2**20
CAPACITY = 32 * MIB
_TABLE = (
    r'{range .status.borrowers[*]}{.pod}{"\tborrowed "}{.borrowedBytes}'
    r'{"\tmapped "}{.mappedBytes}{"\tlimit "}{.limitBytes}'
    r'{"\tlevel "}{.level}{"\tdenials "}{.denials}{"\n"}{end}'
)
_GROUPS = f"kubectl -n {NAMESPACE} get sharedmemorygroup"
_GROUP = f"{_GROUPS} cache"


def _set_mapping(shell: Shell, pod: str, mebibytes: int) -> None:
    shell.run(f"kubectl -n {NAMESPACE} annotate pod {pod} mebibytes={mebibytes} --overwrite")


def _maps(shell: Shell, pod: str, mebibytes: int, then: str = "") -> None:
    """Wait until the pod's log says that it maps this much, and then `then`."""

    def wanted(log: str) -> bool:
        line = re.search(r"maps (\d+) bytes(.*)", log)
        return line is not None and int(line[1]) == mebibytes * MIB and then in line[2]

    shell.until_logged(
        f"kubectl -n {NAMESPACE} logs {pod}",
        1,
        wanted,
        f"{pod} maps {mebibytes} MiB{then and ', then: '}{then}",
    )


def _status(shell: Shell, **borrowed: int) -> dict[str, Any]:
    """Wait until exactly these pods borrow these MiB, and show the group and the table."""
    status: dict[str, Any] = {}

    def check(group: dict[str, Any]) -> bool:
        status.clear()
        status.update(group.get("status", {}))
        now = {entry["pod"]: entry.get("borrowedBytes") for entry in status.get("borrowers", [])}
        return now == {pod: amount * MIB for pod, amount in borrowed.items()}

    try:
        shell.wait(_GROUPS, "cache", check, f"borrowers and their MiB: {borrowed}")
    finally:
        shell.run(_GROUP)
        shell.run(f"{_GROUP} -o jsonpath='{_TABLE}'")
    return status


def prepare(shell: Shell) -> None:
    """Apply the objects of this act, whose pods start during the first act."""
    shell.run(
        f"kubectl annotate namespace {NAMESPACE} "
        "pinwarden.io/allow-shared-memory=create:64Mi --overwrite"
    )
    shell.run(
        f"kubectl -n {NAMESPACE} create configmap borrower --from-file=examples/demo/borrower.py"
        " --dry-run=client -o yaml | kubectl apply -f -"
    )
    shell.run(
        f"kubectl -n {NAMESPACE} apply -f examples/demo/shared.yaml -f examples/demo/borrowers.yaml"
    )


def three_pods_share(shell: Shell) -> None:
    """M1, M3, M5: the object has one charge; each pod borrows its mapped pages."""
    shell.run(
        f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod -l demo=borrower --timeout=600s"
    )
    _set_mapping(shell, "reader", 8)
    _maps(shell, "reader", 8)
    _status(shell, reader=8)
    _set_mapping(shell, "writer", 32)
    _set_mapping(shell, "greedy", 4)
    _maps(shell, "writer", 32)
    status = _status(shell, writer=32, reader=8, greedy=4)
    if status.get("chargeBytes") != CAPACITY:
        raise ClaimError(f"the object's charge is {status.get('chargeBytes')}, not {CAPACITY}")
    shell.say(
        "  -> the object has one charge of 32 MiB; the writer wrote all, the reader's borrow is "
        "unchanged"
    )


def borrow_follows_mappings(shell: Shell) -> None:
    """M6: the borrow follows `mmap` and `munmap`."""
    _set_mapping(shell, "reader", 12)
    _maps(shell, "reader", 12)
    _status(shell, writer=32, reader=12, greedy=4)
    _set_mapping(shell, "reader", 2)
    _maps(shell, "reader", 2)
    _status(shell, writer=32, reader=2, greedy=4)


def a_borrow_limit_denies(shell: Shell) -> None:
    """M8: a mapping that would exceed the pod's borrow limit fails."""
    _set_mapping(shell, "greedy", 24)
    _maps(shell, "greedy", 16, "Cannot allocate memory")
    _status(shell, writer=32, reader=2, greedy=16)
    _set_mapping(shell, "greedy", 4)
    _maps(shell, "greedy", 4)


def a_stranger_is_denied(shell: Shell) -> None:
    """M2: only a member may borrow, whatever volumes other pods have."""
    _set_mapping(shell, "stranger", 1)
    _maps(shell, "stranger", 0, "Permission denied")
    _set_mapping(shell, "stranger", 0)
    _status(shell, writer=32, reader=2, greedy=4)


def the_fair_view(shell: Shell) -> None:
    """M11: the kernel charges a pod for its own memory; its borrow is shown beside it."""

    def wanted(text: str) -> bool:
        rows = re.findall(r"current (\d+).*borrowed (\d+)", text)
        return any(int(shared) == CAPACITY and int(current) < CAPACITY for current, shared in rows)

    shell.until(
        "kubectl get nodepinconfigs -o jsonpath='{range .items[*]}{range .status.fairView[*]}"
        '{.pod}{"\\tmemory.current "}{.current}'
        '{"\\town anonymous "}{.anonymous}{"\\tborrowed "}{.shared}{"\\n"}{end}{end}\'',
        wanted,
        f"a pod that borrows {CAPACITY} bytes with a smaller memory.current",
    )
    shell.say(
        "  -> no pod's memory.current has the 32 MiB: they are charged to the group's own cgroup"
    )


def orphaned_not_lost(shell: Shell) -> None:
    """M1, M9: the object outlives its writer; memory that no pod has mapped is orphaned."""
    shell.run(f"kubectl -n {NAMESPACE} delete pod writer greedy")
    status = _status(shell, reader=2)
    if (status.get("chargeBytes"), status.get("orphanedBytes")) != (CAPACITY, CAPACITY - 2 * MIB):
        raise ClaimError(
            f"charge {status.get('chargeBytes')}, orphaned {status.get('orphanedBytes')}"
        )


def draining(shell: Shell) -> None:
    """M10: a deleted group reports its last borrower, waits, and then disappears."""
    shell.run(f"kubectl -n {NAMESPACE} delete sharedmemorygroup cache --wait=false")
    shell.until(
        f"{_GROUP} -o jsonpath='{{.status.phase}}: "
        '{.status.conditions[?(@.type=="Drained")].message}\'',
        lambda text: text.startswith("Draining") and "reader" in text,
        "phase Draining with the reader as reason",
    )
    _set_mapping(shell, "reader", 0)
    shell.run(f"kubectl -n {NAMESPACE} delete pod reader stranger")
    shell.until(
        f"{_GROUP} --ignore-not-found -o name", lambda text: not text.strip(), "the group is gone"
    )
    shell.run("kubectl delete persistentvolume demo-shared --wait=false")
