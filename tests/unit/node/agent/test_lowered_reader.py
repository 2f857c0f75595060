"""Processes of containers whose RLIMIT_MEMLOCK the NRI plugin lowered at their creation."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.state import nri_status
from pinwarden.node.state.gate_status import empty
from pinwarden.node.state.nri_status import LoweredLimits, NriStatus

from .test_reconciler import GIVEN, ONE, PAGE, POD, TWO, UID, Node, Worker

APPLIED = Limits(8 * PAGE, 8 * PAGE)
SET = {ONE: LoweredLimits(UID, GIVEN, APPLIED)}
LIMIT: list[dict[str, Any]] = [{"limit": 8 * PAGE}]
FREE = {"uid": UID}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def lower(node: Node, *pids: int, failure: str = "") -> None:
    """Start these processes with the limits of the plugin."""
    node.limits.update(dict.fromkeys(pids, APPLIED))
    nri_status.save(node.nri, NriStatus(failure=failure, lowered=SET))


def restart(node: Node) -> None:
    node.reconciler.close()
    node.start()


@pytest.mark.rule("P14")
def test_deleted_limit_restores_the_inherited_limits(node: Node) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid])
    node.configure(LIMIT, [POD])
    node.tick()
    assert node.writes == [], "the process has its allowance already"
    node.configure([], [FREE], 2)
    node.tick()
    assert node.limits[worker.pid] == GIVEN
    assert node.reconciler.report().pods == []


def test_limit_that_the_process_set_itself_stays(node: Node) -> None:
    soft, both = node.hire(), node.hire()
    lower(node, soft.pid, both.pid)
    node.limits[soft.pid] = Limits(PAGE, 8 * PAGE)
    node.limits[both.pid] = Limits(PAGE, 2 * PAGE)
    node.put([soft.pid, both.pid])
    node.configure(LIMIT, [POD])
    node.tick()
    node.configure([], [FREE], 2)
    node.tick()
    assert node.limits[soft.pid] == Limits(PAGE, GIVEN.hard)
    assert node.limits[both.pid] == Limits(PAGE, 2 * PAGE)


def test_process_of_another_container_keeps_its_own_limits(node: Node) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid], container=TWO)
    node.configure(LIMIT, [POD])
    node.tick()
    node.configure([], [FREE], 2)
    node.tick()
    assert node.limits[worker.pid] == APPLIED


@pytest.mark.rule("H3")
def test_limit_that_is_deleted_while_no_agent_runs_is_restored(node: Node) -> None:
    worker = node.hire()
    lower(node, worker.pid, failure="the NRI plugin has ended")
    node.put([worker.pid])
    node.configure([], [FREE])
    node.tick()
    assert node.limits[worker.pid] == GIVEN


def test_pod_that_turns_out_to_have_no_limit_is_restored(node: Node) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid])
    node.configure([], [], unknownPods=8 * PAGE)
    node.tick()
    assert node.limits[worker.pid] == APPLIED
    node.configure([], [FREE], 2, unknownPods=8 * PAGE)
    node.tick()
    assert node.limits[worker.pid] == GIVEN


def test_process_started_after_the_limit_was_deleted_is_restored(node: Node) -> None:
    worker, later = node.hire(), node.hire()
    lower(node, worker.pid, later.pid)
    node.put([worker.pid])
    node.configure([], [FREE])
    node.tick()
    node.put([worker.pid, later.pid])
    node.tick()
    assert node.limits[later.pid] == GIVEN


def test_process_whose_container_was_written_after_the_listing_is_known(node: Node) -> None:
    worker, later = node.hire(), node.hire()
    node.limits[worker.pid] = APPLIED
    node.put([worker.pid])
    node.configure(LIMIT, [POD])
    node.tick()
    lower(node, later.pid)
    node.put([worker.pid, later.pid])
    node.tick(0.01)
    node.configure([], [FREE], 2)
    node.tick()
    assert node.limits[later.pid] == GIVEN


def test_process_sampled_before_the_runtime_sets_its_limits_is_restored(node: Node) -> None:
    """It joins the cgroup of its container first."""
    worker = node.hire()
    lower(node)
    node.put([worker.pid])
    node.configure([], [FREE])
    node.tick()
    node.limits[worker.pid] = APPLIED
    node.tick()
    assert node.limits[worker.pid] == GIVEN


def test_limits_that_the_runtime_sets_late_are_not_those_of_the_process(node: Node) -> None:
    worker, other = node.hire(), node.hire()
    other.lock(3 * PAGE)
    lower(node, other.pid)
    node.put([worker.pid, other.pid])
    node.configure(LIMIT, [POD])
    node.tick()
    assert node.limits[worker.pid] == Limits(5 * PAGE, 5 * PAGE)
    node.limits[worker.pid] = APPLIED
    node.tick()
    assert node.limits[worker.pid] == Limits(5 * PAGE, 5 * PAGE)
    node.configure([], [FREE], 2)
    node.tick()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("P13")
def test_pod_with_an_audited_limit_is_restored(node: Node) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid])
    node.configure([{"limit": 8 * PAGE, "enforcement": "Audit"}], [POD])
    node.tick()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.parametrize("limited", [True, False])
def test_released_node_is_restored(node: Node, limited: bool) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid])
    if limited:
        node.configure(LIMIT, [POD])
        node.tick()
    node.configure([], [], 2, mode="Release")
    for _ in range(6):
        node.tick()
    assert node.limits[worker.pid] == GIVEN
    assert node.reconciler.report().observed_generation == 2
    assert not node.reconciler._releaser


@pytest.mark.rule("H1")
def test_released_node_still_reports_its_gated_pods(node: Node) -> None:
    """An uninstallation looks for gated pods again after all nodes are released."""
    node.configure([], [], 1, mode="Release")
    node.tick()
    assert node.reconciler.report().gated_pods is None
    gate = empty()
    gate.containers = {ONE: (UID, "main", TWO)}
    node.gate.write_bytes(gate.dump())
    node.tick()
    assert node.reconciler.report().gated_pods == [UID]


def test_pod_that_cannot_be_restored_is_released_once(node: Node) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid])
    node.refused.add(worker.pid)
    node.configure([], [], 2, mode="Release")
    for _ in range(5):
        node.tick()
    assert len(node.reconciler._releaser._quiet) == 1
    node.refused.clear()
    for _ in range(6):
        node.tick()
    assert node.limits[worker.pid] == GIVEN
    assert node.reconciler.report().observed_generation == 2


def test_agent_that_releases_at_its_end_restores(node: Node) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid])
    node.reconciler.release()
    assert node.limits[worker.pid] == GIVEN


def test_released_node_that_cannot_be_listed_is_not_acknowledged(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = node.hire()
    lower(node, worker.pid)
    node.put([worker.pid])
    node.configure([], [], 2, mode="Release")

    def fail(_: float) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(node.reconciler._finder, "find_lowered", fail)
        node.tick()
        assert node.reconciler.report().observed_generation is None
    node.tick()
    assert node.reconciler.report().observed_generation == 2
    assert node.limits[worker.pid] == GIVEN


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.end()


def lives(worker: Worker, events: list[Any], *, plugin: bool, late: bool) -> Limits:
    """Return the limits of a process after these events and the end of its limit.

    With `late`, the runtime sets the limits after the first sample. The agent restarts after its
    records are on disk: an agent killed right before restores a process twice, with and without
    the plugin, and so takes back what the process itself lowered in between.
    """
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder))
        node.limits[worker.pid] = GIVEN
        if plugin:
            lower(node, *() if late else (worker.pid,))
        node.put([worker.pid])
        if late:
            node.configure([{"limit": 6 * PAGE}], [POD], 0)
            node.tick()
            if plugin:
                node.limits[worker.pid] = APPLIED
        for generation, event in enumerate(events, 1):
            if isinstance(event, int):
                limits = [{"limit": event * PAGE}] if event else []
                node.configure(limits, [POD if event else FREE], generation)
            elif isinstance(event, Limits):
                before = node.limits[worker.pid]
                node.limits[worker.pid] = Limits(*map(min, before, event))
            elif event == "restart":
                node.tick()
                node.tick()
                restart(node)
            elif event == "tick":
                node.tick()
            elif plugin:
                lower(node, failure="the NRI plugin has ended")
        node.configure([], [FREE], len(events) + 1)
        node.tick()
        node.close()
        return node.limits[worker.pid]


EVENTS = (
    *(0, 8, 12),
    *("tick", "tick", "restart", "plugin"),
    *(Limits(3 * PAGE, 5 * PAGE), Limits(2 * PAGE, GIVEN.hard), Limits(PAGE, PAGE)),
)
"""A new limit in pages or none, a step of agent or plugin, or limits set by the process."""


def own_once(events: list[Any]) -> bool:
    """Return whether the process sets limits of its own at most once.

    Limits that a restarted agent found look as if a later child inherited them (`for_child`).
    """
    return sum(isinstance(event, Limits) for event in events) <= 1


@pytest.mark.rule("P14", "H3")
@settings(deadline=None, max_examples=100)
@given(events=st.lists(st.sampled_from(EVENTS), max_size=10).filter(own_once), late=st.booleans())
def test_limits_after_a_deletion_are_those_without_the_plugin(
    worker: Worker, events: list[Any], late: bool
) -> None:
    without = lives(worker, events, plugin=False, late=late)
    assert lives(worker, events, plugin=True, late=late) == without
