"""Answers `pinwarden status` on a Unix socket for root, with one JSON object per connection.

The answer has the report, in the form for the API server, and the configuration in force. So the
socket also serves a host without Kubernetes, and a node without a reachable API server.
"""

import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, NoReturn

from pinwarden.common.guard import Guard
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard

CLIENT_SECONDS = 2.0
PAUSE_SECONDS = 0.1
KINDS = ("client",)
_log = logging.getLogger(__name__)


class StatusSocket:
    """Listens as soon as it is created.

    Creation sets the umask for a moment, so no other thread may create a file meanwhile.
    """

    def __init__(
        self, path: Path, node: str, board: SnapshotBoard, guard: Guard | None = None
    ) -> None:
        """Replace the socket of an earlier agent. Raises OSError."""
        self._node = node
        self._board = board
        self._guard = guard or Guard(KINDS)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        umask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(umask)
        self._listener.listen(8)

    def run(self) -> NoReturn:
        """Serve for ever. A client is dropped if it disconnects or does not read."""
        while True:
            with self._guard.item("client"):
                self._serve()
            if not self._guard.due("client"):  # for example, no descriptor is left
                time.sleep(PAUSE_SECONDS)

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            client.settimeout(CLIENT_SECONDS)
            content = json.dumps(answer(self._node, self._board.latest)).encode()
            try:
                client.sendall(content)
            except OSError as error:
                _log.debug("a client of the status socket disconnected: %s", error)


def answer(node: str, snapshot: Snapshot | None) -> dict[str, Any]:
    """Return the answer to a client. Unknown fields are absent (H2); ages are in seconds."""
    content: dict[str, Any] = {"node": node}
    if snapshot is None:
        return content
    content |= {
        "sampledSecondsAgo": round(time.monotonic() - snapshot.taken, 3),
        "report": snapshot.report.to_wire(),
    }
    if snapshot.problem:
        content["problem"] = snapshot.problem.message
    if snapshot.configuration:
        spec = snapshot.configuration.spec.to_wire()
        governed = [pod for pod in spec["pods"] if pod["limits"]]
        content["configuration"] = spec | {"pods": governed}
        content["limitsOf"] = {
            pod.uid: list(snapshot.limit_names.get(pod.uid, ())) for pod in snapshot.report.pods
        }
        if snapshot.configuration.generation is not None:
            content["generation"] = snapshot.configuration.generation
    return content
