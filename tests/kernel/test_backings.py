"""Each rule of shared memory (M1 to M11) for each kind of object, on a real kernel.

Runs inside the guest (`make test-kernel`), as root with every capability. `tools/docs/semantics.py`
reads the marks of these tests and writes the table of kinds and rules. Tests of one kind alone are
in test_shared.py.
"""

import pytest

from pinwarden.api.sharedmemorygroup import Phase

from .backings import CASES, OUTLIVE, SIZE, kinds
from .nodes import MIB
from .shared_nodes import PAGE, SharedNode, group


@pytest.mark.rule(
    "M1", "M3", "M5", "M6", backing="tmpfs posixShm sysvShm hugetlbfs file memfd dmabuf"
)
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.usefixtures("mounts")
def test_charge_and_borrow(shares: SharedNode, kind: str) -> None:
    case = CASES[kind]
    first, a = shares.pod()
    second, b = shares.pod()
    shares.configure(group(case.backing, first, second))
    report = shares.report()
    assert report.charge in (None, 0), "an instance begins with its object"
    handle = case.make(a)
    at = case.map(b, a, handle, 1)
    borrow = shares.borrow(second)
    assert borrow
    assert (borrow.borrowed, borrow.mapped) == (case.resident(1), SIZE)
    assert shares.borrow(first) is None, "who has it open and not mapped borrows nothing"
    case.map(a, a, handle, SIZE // PAGE if case.page == PAGE else 1 + 2 * MIB // PAGE)
    report = shares.report()
    assert report.charge == SIZE
    assert {each.pod: each.borrowed for each in report.borrowers} == {
        first: SIZE,
        second: case.resident(1),
    }
    assert report.orphaned == 0
    looked_at = kind in ("tmpfs", "posixShm", "file")
    assert report.dead == (0 if looked_at else None), "who pays is looked at by name alone (H2)"
    b(f"{case.detach}({at})")
    report = shares.report()
    assert [(each.pod, each.borrowed) for each in report.borrowers] == [(first, SIZE)]
    assert report.charge == SIZE


@pytest.mark.rule("M2", backing="tmpfs posixShm sysvShm hugetlbfs file memfd dmabuf")
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.usefixtures("mounts")
def test_pod_that_is_no_member_is_reported_with_its_bytes(shares: SharedNode, kind: str) -> None:
    case = CASES[kind]
    member, a = shares.pod()
    stranger, b = shares.pod()
    handle = case.make(a)
    case.map(b, a, handle, 1)
    shares.configure(group(case.backing, member))
    report = shares.report()
    (borrow,) = report.borrowers
    assert (borrow.pod, borrow.member) == (stranger, False)
    assert (borrow.borrowed, borrow.mapped, borrow.level) == (case.resident(1), SIZE, None)
    assert report.orphaned == 0, "what a stranger has mapped is not orphaned"


@pytest.mark.rule("M4", backing="tmpfs posixShm sysvShm hugetlbfs file memfd dmabuf")
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.usefixtures("mounts")
def test_without_borrow_accounting_only_the_charge_is_known(shares: SharedNode, kind: str) -> None:
    case = CASES[kind]
    pod, a = shares.pod()
    shares.configure(group(case.backing, pod, accounting="Charge", fairShare="Charge"))
    case.map(a, a, case.make(a), 1)
    report = shares.report()
    assert (report.charge, report.borrowers, report.orphaned) == (case.charge(1), [], None)
    assert shares.accountant.pods_walked == 0


@pytest.mark.rule("M1", "M9", backing="tmpfs posixShm sysvShm hugetlbfs file")
@pytest.mark.parametrize("kind", OUTLIVE)
@pytest.mark.usefixtures("mounts")
def test_bytes_of_an_ended_pod_are_orphaned_until_the_object_ends(
    shares: SharedNode, kind: str
) -> None:
    case = CASES[kind]
    pod, a = shares.pod()
    _, b = shares.pod()
    shares.configure(group(case.backing, pod))
    handle = case.make(a)
    case.map(a, a, handle, 1)
    assert shares.report().orphaned == 0
    shares.end(pod)
    shares.configure(group(case.backing))
    report = shares.report()
    assert (report.phase, report.charge, report.orphaned) == (
        Phase.ACTIVE,
        case.charge(1),
        case.charge(1),
    )
    assert report.borrowers == []
    case.remove(b, handle)
    report = shares.report()
    if kind in ("tmpfs", "hugetlbfs"):  # the object is the file system
        assert (report.phase, report.charge) == (Phase.ACTIVE, 0)
    else:
        assert (report.phase, report.charge) == (Phase.RELEASED, None)


@pytest.mark.rule("M1", "M9", backing="memfd dmabuf")
@pytest.mark.parametrize("kind", kinds("memfd", "dmabuf"))
@pytest.mark.usefixtures("mounts")
def test_unnamed_object_lives_until_its_last_user_and_is_orphaned_unmapped(
    shares: SharedNode, kind: str
) -> None:
    case = CASES[kind]
    first, a = shares.pod()
    second, b = shares.pod()
    handle = case.make(a)
    case.map(a, a, handle, 2)
    mine = b(f"taken({a.pid}, {handle})")
    at = b(f"mapped({mine}, {SIZE})")
    b(f"touch({at}, 1)")
    shares.configure(group(case.backing, first, second))
    assert (shares.report().charge, shares.report().orphaned) == (case.resident(2), 0)
    shares.end(first)
    shares.configure(group(case.backing, second))
    report = shares.report()
    assert (report.charge, report.orphaned) == (
        case.resident(2),
        case.resident(2) - case.resident(1),
    )
    b(f"unmap({at})")
    report = shares.report()
    assert (report.phase, report.orphaned) == (Phase.ACTIVE, case.resident(2))
    b(f"close({mine})")
    report = shares.report()
    assert (report.phase, report.reason, report.charge) == (Phase.PENDING, "NotThere", None)


@pytest.mark.rule("M10", backing="tmpfs posixShm sysvShm hugetlbfs file memfd dmabuf")
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.usefixtures("mounts")
def test_draining_group_waits_for_its_last_borrower_and_removes_nothing(
    shares: SharedNode, kind: str
) -> None:
    case = CASES[kind]
    pod, a = shares.pod()
    asked = group(case.backing, pod)
    shares.configure(asked)
    handle = case.make(a)
    at = case.map(a, a, handle, 1)
    shares.configure({**asked, "draining": True})
    report = shares.report()
    assert (report.phase, report.reason) == (Phase.DRAINING, "InUse")
    assert str(a.pid) in report.message
    a(f"{case.detach}({at})")
    assert shares.report().phase is Phase.RELEASED
    case.map(a, a, handle, 1)


@pytest.mark.rule("M11", backing="tmpfs posixShm sysvShm hugetlbfs file memfd dmabuf")
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.usefixtures("mounts")
def test_fair_view_has_borrowed_bytes_whoever_touched_them_first(
    shares: SharedNode, kind: str
) -> None:
    case = CASES[kind]
    first, a = shares.pod()
    second, b = shares.pod()
    shares.configure(group(case.backing, first, second))
    handle = case.make(a)
    case.map(a, a, handle, 1)
    case.map(b, a, handle, 1)
    shares.report()
    view = {each.pod: each for each in shares.accountant.status.fair_view}
    assert view[first].shared == view[second].shared == case.resident(1)
    assert all(0 < each.anonymous <= each.current for each in view.values())
