"""The agent's client of the API server: list and watch one object, and replace its status.

The client uses urllib3. The `kubernetes` package would cost more than half of the agent's memory
budget, and urllib3 costs 2 MiB.

- `list_own` and `watch_own` select the node's object by name, so the server sends no other object.
- `replace_status` is a JSON patch that replaces the whole status. An absent field becomes absent:
  unknown, not zero (H2). Without a resourceVersion, a concurrent write of the spec is no conflict.
  A `test` on the uid comes first, so that a recreated object of the same name does not get the
  status of the earlier one.
- TCP keepalive detects a dead connection within about 10 seconds, as after a power loss.
"""

import json
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import urllib3

from pinwarden import __version__
from pinwarden.api.meta import GROUP, VERSION
from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.node.agent.kubeconfig import ApiServer

_T = TypeVar("_T")
FIELD_MANAGER = "pinwarden-agent"
_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_WATCH_SECONDS = (240, 480)
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
]


class ApiError(Exception):
    """A failed request. `status` is the HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Object:
    """The parts of a NodePinConfig that the agent uses, as the server sent them."""

    uid: str
    generation: int
    spec: Any


@dataclass(frozen=True)
class Event:
    """One event of a watch.

    `object` is None in a bookmark, and in a deletion, where `deleted` is set.
    """

    resource_version: str
    object: Object | None = None
    deleted: bool = False


class NodePinConfigClient:
    """The NodePinConfig named `node`. Every call raises ApiError. Several threads may call."""

    def __init__(self, server: ApiServer, node: str) -> None:
        self._server = server
        self._node = node
        self._path = f"{server.url}/apis/{GROUP}/{VERSION}/{NodePinConfig.plural}"
        # A watch keeps its connection for minutes; the status writer has the other one.
        self._pool = urllib3.PoolManager(
            maxsize=2,
            retries=False,
            ssl_context=server.tls,
            server_hostname=server.server_name,
            assert_hostname=server.server_name,
            socket_options=_SOCKET_OPTIONS,
        )

    def list_own(self) -> tuple[Object | None, str]:
        """Return the node's object, None if absent, and the resource version to watch from."""
        content = self._answer("GET", self._path, fields=self._selector())
        items = content.get("items") or []
        return (_object(items[0]) if items else None), _resource_version(content)

    def watch_own(self, resource_version: str) -> Iterator[Event]:
        """Yield the events of the node's object until the server ends the watch.

        Raises ApiError with status 410 if the caller must list again.
        """
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311 - spreads the agents, guards nothing
        response = self._request(
            "GET",
            self._path,
            fields={
                **self._selector(),
                "watch": "1",
                "resourceVersion": resource_version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(seconds),
            },
            answer_seconds=seconds + _ANSWER_SECONDS,
            stream=True,
        )
        try:
            for line in response:
                yield _event(_json(line))
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(f"the watch broke: {error}") from error
        finally:
            response.close()  # a connection with an unread rest must not be used again

    def replace_status(self, uid: str, status: Mapping[str, Any]) -> None:
        """Replace the whole status of the object with this uid.

        Raises ApiError with status 404 if the node has no object.
        """
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": "/status", "value": status},
        ]
        self._answer(
            "PATCH",
            f"{self._path}/{self._node}/status?fieldManager={FIELD_MANAGER}",
            body=json.dumps(patch).encode(),
            headers={"Content-Type": "application/json-patch+json"},
        )

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self._node}"}

    def _answer(self, method: str, url: str, **arguments: Any) -> Mapping[str, Any]:
        return _json(self._request(method, url, **arguments).data)

    def _request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        answer_seconds: float = _ANSWER_SECONDS,
        stream: bool = False,
        **arguments: Any,
    ) -> urllib3.BaseHTTPResponse:
        try:
            token = self._server.token()
            response = self._pool.request(
                method,
                url,
                headers={
                    "Accept": "application/json",
                    "User-Agent": f"pinwarden-agent/{__version__}",
                    **({"Authorization": f"Bearer {token}"} if token else {}),
                    **(headers or {}),
                },
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=answer_seconds),
                redirect=False,
                preload_content=not stream,
                **arguments,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(f"no answer from {self._server.url}: {error}") from error
        if response.status >= 300:
            raise _error_of(response)
        return response


def _error_of(response: urllib3.BaseHTTPResponse) -> ApiError:
    try:
        data = response.data
    except urllib3.exceptions.HTTPError:
        data = b""
    try:
        message = _json(data).get("message") or ""
    except ApiError:
        message = data[:200].decode(errors="replace")
    retry_after = response.headers.get("Retry-After", "")
    return ApiError(
        f"HTTP {response.status}: {message}",
        response.status,
        float(retry_after) if retry_after.isdecimal() else 0.0,
    )


def _event(content: Mapping[str, Any]) -> Event:
    """Return one event of a watch.

    Raises ApiError for an event of type ERROR, with its code as status, and for an invalid event.
    """
    body = content.get("object")
    if not isinstance(body, Mapping):
        raise ApiError("the watch sent an event without an object")
    match content.get("type"):
        case "ADDED" | "MODIFIED":
            return Event(_resource_version(body), _object(body))
        case "DELETED":
            return Event(_resource_version(body), deleted=True)
        case "BOOKMARK":
            return Event(_resource_version(body))
        case "ERROR":
            raise ApiError(f"the watch ended: {body.get('message')}", body.get("code"))
        case kind:
            raise ApiError(f"the watch sent an event of type {kind!r}")


def _object(body: Mapping[str, Any]) -> Object:
    return _well_formed(
        lambda: Object(
            str(body["metadata"]["uid"]), int(body["metadata"]["generation"]), body.get("spec")
        )
    )


def _resource_version(body: Mapping[str, Any]) -> str:
    return _well_formed(lambda: str(body["metadata"]["resourceVersion"]))


def _well_formed(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (KeyError, TypeError, ValueError) as error:
        raise ApiError(f"the answer is not that of a Kubernetes API server: {error!r}") from error


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the answer is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ApiError("the answer is not a JSON object")
    return content
