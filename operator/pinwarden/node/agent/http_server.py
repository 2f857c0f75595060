"""Serves `/metrics`, `/healthz` and `/readyz` over plain HTTP.

`/readyz` fails if the main loop has not ticked for some seconds. Then the agent's pod is not ready,
and the operator counts the agent as silent. `/healthz` fails after a much longer time, so that the
kubelet restarts the agent. A slow client occupies one of a few threads for a few seconds. So no
client blocks the probes of the kubelet for longer.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from pinwarden.node.agent.metrics import CONTENT_TYPE

READY_SECONDS = 5.0
HEALTHY_SECONDS = 30.0
_CLIENT_SECONDS = 3.0
_CLIENTS = 16
_log = logging.getLogger(__name__)


class Pulse:
    """The time of the last tick of the main loop."""

    def __init__(self) -> None:
        self._last: float | None = None

    def beat(self) -> None:
        """Record a tick."""
        self._last = time.monotonic()

    def within(self, seconds: float) -> bool:
        """Return whether a tick happened within the last `seconds`."""
        return self._last is not None and time.monotonic() - self._last < seconds


class WebServer(ThreadingHTTPServer):
    """Listens as soon as it is created; `serve_forever` answers.

    Raises OSError if the address is in use.

    The empty `address` stands for all addresses of the host, IPv4 and, if present, IPv6.
    """

    daemon_threads = True

    def __init__(
        self, address: str, port: int, pulse: Pulse, render_metrics: Callable[[], bytes]
    ) -> None:
        self.pulse = pulse
        self.render_metrics = render_metrics
        self._free = threading.BoundedSemaphore(_CLIENTS)
        if not address and socket.has_dualstack_ipv6():
            address = "::"
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    @property
    def url(self) -> str:
        """The base URL of the server."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def server_bind(self) -> None:
        """Bind without the reverse lookup of the base class: a starting node can have no DNS."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request, or close the connection while too many are busy."""
        if not self._free.acquire(timeout=_CLIENT_SECONDS):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer in the thread of the request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, except a client that disconnected."""
        if not isinstance(sys.exc_info()[1], OSError):
            _log.exception("cannot answer a request")


class _Handler(BaseHTTPRequestHandler):
    server: WebServer
    timeout = _CLIENT_SECONDS
    server_version = "pinwarden"
    sys_version = ""

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, self.server.render_metrics(), CONTENT_TYPE)
            case "/readyz":
                self._answer_health(READY_SECONDS)
            case "/healthz":
                self._answer_health(HEALTHY_SECONDS)
            case _:
                self._answer(404, b"not found: try /metrics, /healthz or /readyz\n")

    def _answer_health(self, seconds: float) -> None:
        if self.server.pulse.within(seconds):
            self._answer(200, b"ok\n")
        else:
            self._answer(503, f"the main loop did not tick within {seconds:.0f} s\n".encode())

    def _answer(
        self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log no requests."""
