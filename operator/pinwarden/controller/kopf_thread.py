"""The thread in which kopf runs the `handlers`, with an event loop of its own.

kopf handles the signals of its loop, and cancels every task of the loop when it ends. If kopf
fails, the thread starts kopf again, and kopf lists all objects again.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

import kopf

from pinwarden.common.backoff import Backoff
from pinwarden.controller.handlers import OperatorMemo, registry

_LONG_RUN_SECONDS = 20.0
_log = logging.getLogger(__name__)


def _is_no_attempt(record: logging.LogRecord) -> bool:
    """Drop kopf's log line for each attempt: the reflectors log the failure once."""
    return not record.getMessage().startswith("Request attempt")


logging.getLogger("kopf").setLevel(logging.WARNING)
logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
logging.getLogger("kopf._cogs.clients.watching").addFilter(_is_no_attempt)


class KopfThread:
    """Run kopf for these namespaces, or for all if there are none."""

    def __init__(self, memo: OperatorMemo, namespaces: Sequence[str]) -> None:
        self._memo = memo
        self._namespaces = namespaces

    async def run(self) -> None:
        """Run kopf until cancelled, and start a failed kopf again after a growing pause."""
        backoff = Backoff()
        while True:
            started = self._memo.loop.time()
            stop, ended = asyncio.Event(), asyncio.Event()
            loop = asyncio.new_event_loop()
            arguments = loop, stop, ended
            threading.Thread(target=self._serve, args=arguments, name="kopf", daemon=True).start()
            try:
                await ended.wait()
            finally:
                with suppress(RuntimeError):  # the loop of an ended kopf is closed
                    loop.call_soon_threadsafe(stop.set)
            if self._memo.loop.time() - started > _LONG_RUN_SECONDS:
                backoff.succeeded()
            await asyncio.sleep(backoff.failed())

    def _serve(
        self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, ended: asyncio.Event
    ) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(
                    kopf.operator(
                        registry=registry,
                        memo=self._memo,
                        clusterwide=not self._namespaces,
                        namespaces=self._namespaces,
                        standalone=True,
                        identity="pinwarden",  # type: ignore[arg-type]  # else kopf asks the host
                        stop_flag=stop,
                    )
                )
        except Exception:  # noqa: BLE001 - kopf raises the exceptions of its tasks
            _log.exception("kopf failed, starting kopf again")
        finally:
            self._memo.call(ended.set)
