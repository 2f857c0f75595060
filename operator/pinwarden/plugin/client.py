"""Requests to the API server with the raw `ApiClient` of `kubernetes`: JSON in pages, and readable
errors.

The package supports kubeconfigs, credential plugins, TLS and proxies. Its typed models are not
used: they cost time at the start, and lose fields of a newer API server.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, list_kube_config_contexts

from pinwarden.plugin.errors import PluginError

PINWARDEN: Final = "/apis/pinwarden.io/v1alpha1"
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
PAGE: Final = 500
_OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_IN_CLUSTER: Final = "KUBERNETES_SERVICE_HOST"

Json = dict[str, Any]


class ApiError(PluginError):
    """An error of the API server with its HTTP status; `by_name`: only the object is missing."""

    def __init__(self, message: str, status: int, *, by_name: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.by_name = by_name


class PluginClient:
    """GET requests with the user's own rights; `namespace` comes from the context."""

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        seconds: float = READ_SECONDS,
    ) -> None:
        """Read the kubeconfig, else the service account of a pod, with the timeout of an answer.

        Raises:
            PluginError: both are missing or cannot be read.
        """
        self._configuration = Configuration()
        self._configuration.retries = False
        self._timeout = (min(CONNECT_SECONDS, seconds), seconds)
        try:
            self.namespace = self._load(kubeconfig, context)
        except (ConfigException, OSError, ValueError, TypeError, KeyError) as error:
            raise PluginError(
                f"cannot load a kubeconfig: {str(error).rstrip('.')}; "
                "set --kubeconfig and --context, or KUBECONFIG"
            ) from error
        if not self._configuration.verify_ssl:
            urllib3.disable_warnings()
        self._client = ApiClient(self._configuration)
        self._client.user_agent = "kubectl-pinwarden"

    def _load(self, kubeconfig: str | None, context: str | None) -> str:
        path = kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
        if kubeconfig and not Path(kubeconfig).is_file():
            raise PluginError(f"--kubeconfig {kubeconfig}: there is no such file")
        named = kubeconfig or context or os.environ.get("KUBECONFIG")
        if not named and not Path(path).expanduser().exists() and _IN_CLUSTER in os.environ:
            load_incluster_config(self._configuration)  # type: ignore[no-untyped-call]
            return _OWN_NAMESPACE.read_text().strip() or "default"
        load_kube_config(  # type: ignore[no-untyped-call]
            path, context, self._configuration, persist_config=False
        )
        contexts, current = list_kube_config_contexts(path)  # type: ignore[no-untyped-call]
        chosen: Json = next((entry for entry in contexts if entry["name"] == context), current)
        return str(chosen["context"].get("namespace") or "default")

    def get(self, path: str, **query: str | int) -> Json:
        """Return an object.

        Raises:
            ApiError: the server answers with an error.
            PluginError: no server answers.
        """
        try:
            request = self._client.param_serialize(
                "GET",
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
            response = self._client.call_api(*request, _request_timeout=self._timeout)
            data = response.read() or b""  # type: ignore[no-untyped-call]
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise PluginError(
                f"no API server answers at {self._configuration.host}: {_cause(error)}; "
                "is this the right --context or --kubeconfig?"
            ) from error
        if response.status >= 300:
            raise _api_error(path, response.status, data, query.get("labelSelector"))
        try:
            answer: Json = json.loads(data)
        except ValueError as error:
            raise PluginError(
                f"the server at {self._configuration.host} is not an API server"
            ) from error
        return answer

    def items(self, path: str, **query: str | int) -> Iterator[Json]:
        """Yield the objects of a list, page by page."""
        token = ""
        while True:
            more = {"continue": token} if token else {}
            page = self.get(path, limit=PAGE, **query, **more)
            yield from page.get("items") or ()
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return


def contexts(kubeconfig: str | None) -> list[str]:
    """Return the names of the contexts of a kubeconfig."""
    try:
        path = kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
        entries, _ = list_kube_config_contexts(path)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, ValueError, TypeError):
        return []
    return [context["name"] for context in entries]


def _api_error(path: str, status: int, data: bytes, selector: str | int | None) -> ApiError:
    try:
        answer: Mapping[str, Any] = json.loads(data)
        message = str(answer.get("message") or status)
        by_name = answer.get("reason") == "NotFound" and bool(
            (answer.get("details") or {}).get("name")
        )
    except (ValueError, AttributeError):
        message, by_name = f"{path}: {status}", False
    if status == 400 and selector:
        message = f"--selector {selector!r}: {message}"
    if status == 401:
        message = "the API server does not accept these credentials (401): log in again"
    return ApiError(message, status, by_name=by_name)


def _cause(error: BaseException) -> str:
    """Return the text of the innermost cause."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
