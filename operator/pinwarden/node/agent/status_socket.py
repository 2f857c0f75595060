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

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.common import patterns
from pinwarden.common.guard import Guard
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard

CLIENT_SECONDS = 2.0
PAUSE_SECONDS = 0.1
KINDS = ("client",)
UNKNOWN_PODS = "unknownPods"
_log = logging.getLogger(__name__)


class StatusSocket:
    """Listens from the moment it is made; no other thread may make a file meanwhile, since it sets the umask for a moment."""

    def __init__(self, path: Path, node: str, board: SnapshotBoard, guard: Guard | None = None) -> None:
        """Takes the place of a socket that an earlier agent left. Raises OSError."""
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
        """Never returns; a client that goes away or does not read is left."""
        while True:
            with self._guard.item("client"):
                self._serve()
            if not self._guard.due("client"):  # as where no descriptor is left
                time.sleep(PAUSE_SECONDS)

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            client.settimeout(CLIENT_SECONDS)
            content = json.dumps(answer(self._node, self._board.latest)).encode()
            try:
                client.sendall(content)
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
        subject.uid: listed.get(subject.uid) or _unlisted(spec, snapshot.names.get(subject.uid, subject.uid))
        for subject in snapshot.report.pods
    }


def _unlisted(spec: NodePinConfigSpec, subject: str) -> list[str]:
    """Of a directory the limits whose pattern matches its path; of a pod that is not listed the one for such pods."""
    names = [
        limit.name
        for limit in spec.limits
        if limit.cgroup_pattern and patterns.matches(limit.cgroup_pattern, subject)
    ]
    return names or ([UNKNOWN_PODS] if spec.unknown_pods is not None else [])
