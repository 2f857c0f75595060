"""Requests to the API server over the raw `ApiClient` of `kubernetes.aio`.

The package brings credentials (kubeconfig, service account, refreshed tokens), TLS and the connection pool. Its typed models are left
aside: they cost more memory than the whole cache, and a typed object cannot hold a field that a newer API server added.
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
# The API server mostly sends a bookmark once a minute, so a watch that is silent for longer is ended: it may be dead.
WATCH_SILENCE_SECONDS = 90.0
_APPLY = "application/apply-patch+yaml; charset=utf-8"
_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"

Json = dict[str, Any]


class ConnectionSetupError(Exception):
    """There is no usable way to reach an API server; the message is for people."""


class ApiError(Exception):
    """A request that did not succeed.

    `status` is that of HTTP, None when there was no answer; `retry_after` is what the server asked for, in seconds.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """One of a few words, for metrics."""
        return {None: "unreachable", 409: "conflict", 429: "throttled", 410: "gone"}.get(
            self.status, "server" if (self.status or 0) >= 500 else "refused"
        )


async def configure(kubeconfig: Path | None) -> Configuration:
    """The way to the API server: `kubeconfig`, else the pod's service account, else $KUBECONFIG or ~/.kube/config.

    Raises:
        ConnectionSetupError: it cannot be read, or there is none.
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
        raise ConnectionSetupError(f"cannot tell how to reach the API server: {error}") from error
    return configuration


class Api:
    """JSON requests; every failure is an `ApiError`."""

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
        """GET of a list that holds nothing but the metadata of its items."""
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        return await self._request("GET", path, query, accept=accept)

    async def apply(self, path: str, body: Mapping[str, Any], manager: str = FIELD_MANAGER) -> Json:
        """Server-side apply, taking over fields that another manager holds."""
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, query, as_yaml(body), content=_APPLY)

    async def patch(self, path: str, operations: Sequence[Json]) -> Json:
        """A JSON patch (RFC 6902)."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PATCH", path, query, operations, content="application/json-patch+json")

    async def create(self, path: str, body: Mapping[str, Any], seconds: float = REQUEST_SECONDS) -> Json:
        """POST."""
        return await self._request("POST", path, {}, body, seconds=seconds)

    async def replace(self, path: str, body: Mapping[str, Any], seconds: float = REQUEST_SECONDS) -> Json:
        """PUT; the resourceVersion in `body` must still be the object's."""
        return await self._request("PUT", path, {}, body, seconds=seconds)

    async def delete(self, path: str) -> Json:
        """DELETE."""
        return await self._request("DELETE", path, {})

    async def watch(self, path: str, **query: str | int) -> AsyncGenerator[bytes, None]:
        """The lines of a watch, until the server ends it or was silent for too long."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=WATCH_SILENCE_SECONDS
        )
        query = {"watch": "true", "allowWatchBookmarks": "true", **query}
        response = await self._send("GET", path, query, timeout)
        try:
            async with response:
                if response.status != 200:
                    raise await _refused(response)
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
                    raise await _refused(response)
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
    r"""JSON that is YAML too, as the server reads an apply patch: with a character beyond U+FFFF as `\U0001f9f7` and no surrogates."""
    text = json.dumps(body, ensure_ascii=False)
    return re.sub("[^\x00-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", text)


async def pages(
    get: Callable[..., Awaitable[Json]], path: str, size: int, **query: str | int
) -> AsyncGenerator[Json, None]:
    """The pages of a list by `Api.get` or `Api.get_metadata`, each with `items`; raises ApiError, 410 when the server lost the place."""
    token = ""
    while True:
        page = await get(path, limit=size, **({"continue": token} if token else {}), **query)
        token = page["metadata"].get("continue") or ""
        page["items"] = page.get("items") or []
        yield page
        if not token:
            return


async def _refused(response: aiohttp.ClientResponse) -> ApiError:
    """What the server said; a `Status` object, mostly."""
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
