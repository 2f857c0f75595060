"""Requests to the API server with the raw `ApiClient` of `kubernetes.aio`.

The package provides credentials (kubeconfig, service account, refreshed tokens), TLS and the
connection pool. Its typed models are not used: they need more memory than the whole cache, and they
drop fields of a newer API server.
"""

import json
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.aio.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

FIELD_MANAGER = "pinwarden-operator"
REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 5.0
# The API server usually sends a bookmark every minute; a longer silence may mean a dead watch.
WATCH_SILENCE_SECONDS = 90.0
_APPLY = "application/apply-patch+yaml; charset=utf-8"
_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"

Json = dict[str, Any]


class ConnectionSetupError(Exception):
    """No usable connection to an API server is configured; the message is for users."""


class ApiError(Exception):
    """A request failed.

    `status` is the HTTP status, None without an answer; `retry_after` are the seconds that the
    server asked for.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """Return the kind of the failure for metrics, one of a closed set."""
        return {None: "unreachable", 409: "conflict", 429: "throttled", 410: "gone"}.get(
            self.status, "server" if (self.status or 0) >= 500 else "refused"
        )


async def configure(kubeconfig: Path | None) -> Configuration:
    """Return the connection: `kubeconfig`, else the service account, else $KUBECONFIG or
    ~/.kube/config.

    Raises: ConnectionSetupError: the configuration is missing or cannot be read.
    """
    configuration = Configuration()
    try:
        if kubeconfig is None and _IN_CLUSTER in os.environ:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            path = str(kubeconfig or os.environ.get("KUBECONFIG") or KUBE_CONFIG_DEFAULT_LOCATION)
            await load_kube_config(  # type: ignore[no-untyped-call]
                path, client_configuration=configuration, persist_config=False
            )
    except (ConfigException, OSError, ValueError, TypeError) as error:
        raise ConnectionSetupError(f"cannot find an API server to connect to: {error}") from error
    return configuration


class Api:
    """JSON requests; every failure raises `ApiError`."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._client = ApiClient(configuration)
        self._client.user_agent = FIELD_MANAGER

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, path: str, seconds: float = REQUEST_SECONDS, **query: str | int) -> Json:
        """GET."""
        return await self._request("GET", path, query, seconds=seconds)

    async def get_metadata(self, path: str, **query: str | int) -> Json:
        """GET a list with only the metadata of its items."""
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        return await self._request("GET", path, query, accept=accept)

    async def apply(self, path: str, body: Mapping[str, Any], manager: str = FIELD_MANAGER) -> Json:
        """Apply on the server side, and take over fields of other managers."""
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, query, as_yaml(body), content=_APPLY)

    async def patch(self, path: str, operations: Sequence[Json]) -> Json:
        """Send a JSON patch (RFC 6902)."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request(
            "PATCH", path, query, operations, content="application/json-patch+json"
        )

    async def create(
        self, path: str, body: Mapping[str, Any], seconds: float = REQUEST_SECONDS
    ) -> Json:
        """POST."""
        return await self._request("POST", path, {}, body, seconds=seconds)

    async def replace(
        self, path: str, body: Mapping[str, Any], seconds: float = REQUEST_SECONDS
    ) -> Json:
        """PUT; the resourceVersion in `body` must still be the object's."""
        return await self._request("PUT", path, {}, body, seconds=seconds)

    async def delete(self, path: str) -> Json:
        """DELETE."""
        return await self._request("DELETE", path, {})

    async def watch(self, path: str, **query: str | int) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a watch until the server ends the watch or is silent for too long."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=WATCH_SILENCE_SECONDS
        )
        query = {"watch": "true", "allowWatchBookmarks": "true", **query}
        response = await self._send("GET", path, query, timeout)
        try:
            async with response:
                if response.status != 200:
                    raise await _error_of(response)
                with suppress(aiohttp.SocketTimeoutError):
                    async for line in response.content:
                        yield line
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(f"the watch of {path} broke: {error or type(error).__name__}") from error

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: Mapping[str, Any] | Sequence[Json] | str | None = None,
        *,
        accept: str = "application/json",
        content: str = "application/json",
        seconds: float = REQUEST_SECONDS,
    ) -> Json:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        response = await self._send(method, path, query, timeout, body, accept, content)
        try:
            async with response:
                if response.status >= 300:
                    raise await _error_of(response)
                answer: Json = json.loads(await response.read())
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(f"{method} {path}: {error or type(error).__name__}") from error
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        timeout: aiohttp.ClientTimeout,
        body: Mapping[str, Any] | Sequence[Json] | str | None = None,
        accept: str = "application/json",
        content: str = "application/json",
    ) -> aiohttp.ClientResponse:
        try:
            prepared = await self._client.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params={"Accept": accept, "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
            )
            method, url, headers, prepared_body, _ = prepared
            answer = await self._client.call_api(
                method, url, headers, prepared_body, _request_timeout=timeout
            )
        except (aiohttp.ClientError, ConfigException, OSError, ValueError) as error:
            raise ApiError(f"{method} {path}: {error or type(error).__name__}") from error
        response: aiohttp.ClientResponse = answer.response
        return response


def as_yaml(body: Mapping[str, Any]) -> str:
    r"""Return JSON that is valid YAML for an apply patch; non-ASCII is escaped as `\U0001f9f7`."""
    text = json.dumps(body, ensure_ascii=False)
    return re.sub("[^\x00-\x7e]", lambda match: f"\\U{ord(match[0]):08x}", text)


async def pages(
    get: Callable[..., Awaitable[Json]], path: str, size: int, **query: str | int
) -> AsyncGenerator[Json, None]:
    """Yield the pages of a list. Raises ApiError, with 410 if the continue token has expired."""
    token = ""
    while True:
        page = await get(path, limit=size, **({"continue": token} if token else {}), **query)
        token = page["metadata"].get("continue") or ""
        page["items"] = page.get("items") or []
        yield page
        if not token:
            return


async def _error_of(response: aiohttp.ClientResponse) -> ApiError:
    """Return the server's answer as an error; the body is usually a `Status` object."""
    text = (await response.read()).decode(errors="replace")
    try:
        message = json.loads(text).get("message") or text
    except (ValueError, AttributeError):
        message = text
    return ApiError(
        f"{response.method} {response.url.path}: {response.status} {message[:500]}",
        response.status,
        _seconds(response.headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
