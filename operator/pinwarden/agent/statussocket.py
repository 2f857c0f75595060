"""The agent's own answer to `pinwarden status`: a Unix socket that root alone may open, one JSON object per connection.

The answer is the whole report as the API server would get it, with what the agent was told to hold beside it, so that it also serves a
host without Kubernetes and a node whose API server is away.
"""

import json
import logging
import os
import socket
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from pinwarden.agent.workers import Board, Snapshot
from pinwarden.api.nodepinconfig import NodePinConfigSpec

CLIENT_SECONDS = 2.0
UNKNOWN_PODS = "unknownPods"
_log = logging.getLogger(__name__)


class StatusSocket:
    """Listens from the moment it is made; no other thread may make a file meanwhile, since it sets the umask for a moment."""

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
    """The names of the limits that the configuration gives each subject of the report."""
    if snapshot.configuration is None:
        return {}
    spec = snapshot.configuration.spec
    listed = {pod.uid: list(pod.limits) for pod in spec.pods}
    return {
        subject.uid: listed.get(subject.uid) or _unlisted(spec, subject.uid)
        for subject in snapshot.report.pods
    }


def _unlisted(spec: NodePinConfigSpec, subject: str) -> list[str]:
    """Of a directory the limits whose pattern matches its path; of a pod that is not listed the one for such pods."""
    path = subject.split("/")
    names = [
        limit.name
        for limit in spec.limits
        if limit.cgroup_pattern and _matches(limit.cgroup_pattern.strip("/").split("/"), path)
    ]
    return names or ([UNKNOWN_PODS] if spec.unknown_pods is not None else [])


def _matches(pattern: list[str], path: list[str]) -> bool:
    """As `Path.glob` matches below the root: each part by itself, and `**` any number of directories."""
    if not pattern:
        return not path
    head, *rest = pattern
    if head == "**":
        return any(_matches(rest, path[start:]) for start in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], head) and _matches(rest, path[1:])
