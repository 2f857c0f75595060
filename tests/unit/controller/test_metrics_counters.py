"""Counters of denied calls and overshoots never fall."""

from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import BorrowReport, GroupReport, OvershootReport
from pinwarden.api.pinlimit import Level
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.controller.metrics_counters import ReportCounters
from pinwarden.plan.node_view import NodeView, PodSample

LIMIT, GROUP = "limit-uid", "group-uid"


def use(count: int) -> PodSample:
    return PodSample(0, 0, Level.DENY, "", "", {}, {LIMIT: count})


def view(count: int, denied: int | None = None, node: str = "n1") -> NodeView:
    denied = count if denied is None else denied
    return NodeView(node, pods={"p": use(count)}, denied=denied, reported=True)


def overshot(count: int, *, truncated: bool = False, listed: bool = True) -> NodeView:
    entry = OvershootReport(
        limit=LIMIT, pod="p", peak=1, seconds=0, count=count, last_time="2026-01-01T00:00:00Z"
    )
    return NodeView(
        "n1", pods={"p": use(0)}, overshoots=(entry,) if listed else (), truncated=truncated
    )


def counters() -> ReportCounters:
    return ReportCounters(lambda uid: uid in (LIMIT, GROUP))


def test_counter_first_report_of_a_node_adds_nothing() -> None:
    counted = counters()
    counted.observe(view(7))
    assert (counted.denials(LIMIT), counted.denied) == (0, 0)
    counted.observe(view(9))
    assert (counted.denials(LIMIT), counted.denied) == (2, 2)
    counted.observe(view(5, node="n2"))
    assert counted.denials(LIMIT) == 2


def test_counter_new_pod_adds_its_first_denials() -> None:
    counted = counters()
    counted.observe(NodeView("n1", denied=0))
    counted.observe(view(3))
    assert counted.denials(LIMIT) == 3


@given(st.lists(st.integers(0, 50)))
def test_counter_after_restarted_counts_never_falls(counts: list[int]) -> None:
    counted, before, last = counters(), 0, None
    for count in counts:
        counted.observe(view(count))
        added = 0 if last is None else count - last if count >= last else count
        assert counted.denials(LIMIT) == counted.denied == before + added
        before, last = before + added, count


def test_counter_unknown_uid_is_ignored() -> None:
    counted = ReportCounters(lambda _: False)
    counted.observe(view(0))
    counted.observe(view(4))
    assert counted.denials(LIMIT) == 0
    assert counted.denied == 4


def test_counter_denied_mappings_belong_to_the_group() -> None:
    counted = counters()
    for denials in (1, 4):
        borrow = BorrowReport(pod="p", member=False, denials=denials)
        report = GroupReport(uid=GROUP, phase=Phase.ACTIVE, borrowers=[borrow])
        counted.observe(NodeView("n1", groups={GROUP: report}))
    assert counted.denials(GROUP) == 3
    assert counted.denied == 0, "a node counts denied pins only"


def test_counter_overshoot_missing_from_a_truncated_report_counts_once() -> None:
    counted = counters()
    counted.observe(NodeView("n1"))
    for report in (
        overshot(1),
        overshot(1, truncated=True, listed=False),
        overshot(1, truncated=True),
        overshot(2),
    ):
        counted.observe(report)
    assert counted.overshoots(LIMIT) == 2


def test_counter_of_deleted_objects_is_forgotten() -> None:
    counted = counters()
    counted.observe(view(0))
    counted.observe(view(4))
    counted.forget(LIMIT)
    assert counted.denials(LIMIT) == 0
    counted.forget_node("n1")
    counted.observe(view(9))
    assert counted.denials(LIMIT) == 0, "a first report again"
