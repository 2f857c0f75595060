"""/metrics, /healthz and /readyz over plain HTTP, served by the operator's event loop.

Any answer shows that the loop is alive. /readyz also says whether everything has been listed. A
replica without the Lease is as ready as the leader.
"""

from collections.abc import Callable

from aiohttp import web

from pinwarden.controller.metrics import CONTENT_TYPE, Metrics


class HttpServer:
    """Serve during an ``async with`` block; `port` 0 takes a free port.

    Raises OSError if no port is free.
    """

    def __init__(
        self, address: str, port: int, metrics: Metrics, unready: Callable[[], list[str]]
    ) -> None:
        self._metrics = metrics
        self._unready = unready
        self._address = address or None
        self._port = port
        application = web.Application()
        application.router.add_get("/metrics", self._serve_metrics)
        application.router.add_get("/healthz", self._serve_health)
        application.router.add_get("/readyz", self._serve_ready)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)

    async def __aenter__(self) -> str:
        """Start the server and return its URL."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address, self._port, shutdown_timeout=0.5).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _serve_health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _serve_ready(self, _: web.Request) -> web.Response:
        if missing := self._unready():
            return web.Response(status=503, text=f"not listed yet: {', '.join(missing)}\n")
        return web.Response(text="ok\n")
