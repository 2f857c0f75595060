"""The agent's own answer to `pinwarden status`: a Unix socket that root alone may open, one JSON object per connection.

The answer is the whole report as the API server would get it, with what the agent was told to hold beside it, so that it also serves a
host without Kubernetes and a node whose API server is away.
"""

import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, NoReturn

from pinwarden.agent.workers import Board, Snapshot

CLIENT_SECONDS = 2.0
_log = logging.getLogger(__name__)


class StatusSocket:
    """Listens from the moment it is made; to be made before threads are started, since it sets the umask for a moment."""

    def __init__(self, path: Path, node: str, board: Board) -> None:
        """Takes the place of a socket that an earlier agent left. Raises OSError."""
        self._node = node
        self._board = board
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
        """Never returns; a client that goes away or does not read is left."""
        while True:
            client, _ = self._listener.accept()
            with client:
                client.settimeout(CLIENT_SECONDS)
                try:
                    client.sendall(json.dumps(answer(self._node, self._board.latest)).encode())
                except OSError as error:
                    _log.debug("a client of the status socket went away: %s", error)


def answer(node: str, snapshot: Snapshot | None) -> dict[str, Any]:
    """What a client gets: absent is what is not known (H2); ages are in seconds."""
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
        content["limitsOf"] = limits_of(snapshot)
        if snapshot.configuration.generation is not None:
            content["generation"] = snapshot.configuration.generation
    return content


def limits_of(snapshot: Snapshot) -> dict[str, list[str]]:
    """The names of the limits that hold for each subject of the report."""
    if snapshot.configuration is None:
        return {}
    spec = snapshot.configuration.spec
    named = {pod.uid: list(pod.limits) for pod in spec.pods}
    return {pod.uid: named[pod.uid] for pod in snapshot.report.pods if pod.uid in named}


def ask(path: Path, seconds: float = 5.0) -> dict[str, Any]:
    """The answer of the agent that listens at `path`. Raises OSError when none answers, ValueError when what answers is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(str(path))
        with client.makefile("rb") as stream:
            content = json.loads(stream.read())
    if not isinstance(content, dict) or "node" not in content:
        raise ValueError("what answers there is no pinwarden agent")
    return content
