"""The thread around kopf: kopf starts again after a failure, and stops with the operator."""

import asyncio
import threading
from typing import Any

import kopf
import pytest

from pinwarden.controller.handlers import OperatorMemo
from pinwarden.controller.items import Items
from pinwarden.controller.kopf_thread import KopfThread
from pinwarden.controller.metrics import Metrics


def test_kopf_thread_failed_kopf_starts_again_and_stops_on_cancellation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scopes: list[tuple[bool, Any]] = []
    waiting, stopped = threading.Event(), threading.Event()

    async def operator(
        *, stop_flag: asyncio.Event, clusterwide: bool, namespaces: Any, **_: Any
    ) -> None:
        scopes.append((clusterwide, namespaces))
        if len(scopes) == 1:
            raise RuntimeError("a task failed")
        waiting.set()
        await stop_flag.wait()
        stopped.set()

    async def main() -> None:
        metrics: Any = Metrics()
        loop = asyncio.get_running_loop()
        memo = OperatorMemo(None, None, metrics, Items(metrics), loop)  # type: ignore[arg-type]
        running = asyncio.create_task(KopfThread(memo, ["team"]).run())
        assert await asyncio.to_thread(waiting.wait, 30)
        running.cancel()
        assert await asyncio.to_thread(stopped.wait, 30)

    monkeypatch.setattr(kopf, "operator", operator)
    asyncio.run(main())
    assert scopes == [(False, ["team"]), (False, ["team"])]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "kopf failed, starting kopf again"
    ]
