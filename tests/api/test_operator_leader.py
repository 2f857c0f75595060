"""Who writes: one replica of the operator at a time, also when one is stopped, killed or ended."""

import signal
from pathlib import Path

from ..waiting import eventually, exit_status
from .operators import BACK_SECONDS, Cluster, Operator


def test_stopped_or_crashed_leader_is_replaced_within_15_seconds(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A leader that was stopped for longer than its Lease lasts writes nothing when it goes on."""
    with (
        Operator(cluster, tmp_path).leads() as first,
        Operator(cluster, tmp_path).ready() as second,
    ):
        assert second.metric("pinwarden_operator_leader") == 0.0
        first.process.send_signal(signal.SIGSTOP)
        eventually(
            lambda: second.metric("pinwarden_operator_leader"),
            lambda value: value == 1.0,
            BACK_SECONDS,
        )
        holder = cluster.holder()
        second.process.kill()
        node = cluster.node()
        first.process.send_signal(signal.SIGCONT)

        def passed_on() -> bool:
            written = cluster.config(node)
            if cluster.holder() != holder:
                return True
            assert not written, "written by one that does not hold the Lease"
            return False

        eventually(passed_on, bool, BACK_SECONDS)
        eventually(lambda: cluster.config(node), bool, BACK_SECONDS)
        assert first.ready().metric("pinwarden_operator_leader") == 1.0


def test_sigterm_ends_the_operator_and_releases_the_lease(cluster: Cluster, tmp_path: Path) -> None:
    with Operator(cluster, tmp_path).leads() as operator:
        operator.process.send_signal(signal.SIGTERM)
        assert exit_status(operator.process) == 0
        assert not [line for line in operator.log if line["level"] in ("error", "critical")]
    assert cluster.holder() == ""
