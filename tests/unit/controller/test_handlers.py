"""The kopf handlers, called as kopf calls them."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any

import kopf
import pytest
from kubernetes.aio.client import Configuration

from pinwarden.controller import handlers
from pinwarden.controller.handlers import OperatorMemo
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.store import Store
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.plan.limit_compiler import LimitSettings

# kopf's types demand every argument that kopf passes.
CONFIGURE: Any = handlers.configure
EVENT_HANDLERS: dict[str, Any] = {
    "PinLimit": handlers.pin_limit_changed,
    "ClusterPinLimit": handlers.cluster_pin_limit_changed,
    "SharedMemoryGroup": handlers.group_changed,
}


def run(steps: Callable[[OperatorMemo], Awaitable[None]]) -> None:
    async def main() -> None:
        metrics = Metrics()
        store = Store(LimitSettings(frozenset(), None), WorkQueue(), WorkQueue(), metrics)
        loop = asyncio.get_running_loop()
        await steps(OperatorMemo(Configuration(), store, metrics, Items(metrics), loop))

    asyncio.run(main())


def event(kind: str, uid: str, change: str | None, **fields: Any) -> Any:
    metadata: dict[str, Any] = {"name": "a", "namespace": "team", "uid": uid, "generation": 1}
    metadata["resourceVersion"] = "1"
    if kind == "ClusterPinLimit":
        del metadata["namespace"]
    return {"type": change, "object": {"kind": kind, "metadata": metadata, "spec": {}, **fields}}


async def deliver(memo: OperatorMemo, kind: str, observed: Any) -> None:
    await EVENT_HANDLERS[kind](event=observed, memo=memo)
    await asyncio.sleep(0)


@pytest.mark.parametrize("kind", EVENT_HANDLERS)
def test_event_of_each_kind_puts_and_removes_the_object(kind: str) -> None:
    async def steps(memo: OperatorMemo) -> None:
        await deliver(memo, kind, event(kind, "1", None))
        assert memo.store.uids == ["1"]
        assert [entry.observed.kind.__name__ for entry in memo.store.resources.values()] == [kind]
        await deliver(memo, kind, event(kind, "1", "DELETED"))
        assert memo.store.uids == []

    run(steps)


def test_event_of_a_bad_object_fails_alone() -> None:
    async def steps(memo: OperatorMemo) -> None:
        bad = event("PinLimit", "bad", "ADDED")
        bad["object"]["metadata"]["resourceVersion"] = "no number"
        await deliver(memo, "PinLimit", bad)
        assert memo.items.failing("limits") == 1
        await deliver(memo, "PinLimit", event("PinLimit", "good", "ADDED"))
        assert memo.store.uids == ["good"]
        await deliver(memo, "PinLimit", event("PinLimit", "bad", "DELETED"))
        assert memo.items.failing("limits") == 0

    run(steps)


def test_event_after_the_end_of_the_loop_is_dropped() -> None:
    memos: list[OperatorMemo] = []

    async def steps(memo: OperatorMemo) -> None:
        memos.append(memo)

    run(steps)
    (memo,) = memos
    asyncio.run(EVENT_HANDLERS["PinLimit"](event=event("PinLimit", "1", None), memo=memo))
    assert memo.store.uids == []


def test_startup_settings_post_no_event_and_retry_for_ever() -> None:
    settings = kopf.OperatorSettings()

    async def steps(memo: OperatorMemo) -> None:
        await CONFIGURE(settings=settings, memo=memo)
        assert "pinwarden_operator_kopf_starts_total 1.0" in memo.metrics.render().decode()

    run(steps)
    assert not settings.posting.enabled
    assert not settings.posting.loggers
    pauses = settings.networking.error_backoffs
    assert not isinstance(pauses, int | float)
    for pause, _ in zip(pauses, range(100), strict=False):
        assert 0 < pause < 60


def test_memo_is_shared_between_objects() -> None:
    async def steps(memo: OperatorMemo) -> None:
        assert copy.copy(memo) is memo

    run(steps)
