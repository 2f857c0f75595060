"""Finds the API server and the agent's credentials, from a kubeconfig or a pod's service account.

A kubeconfig can have a token or a client certificate, inline or as files. A credential that needs a
program is rejected by name: the agent's image has no such program. A token file is read again when
it changes, because the kubelet renews it.
"""

import base64
import binascii
import json
import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_UNSUPPORTED_USER_FIELDS = ("exec", "auth-provider", "username", "password", "as")


class KubeconfigError(ValueError):
    """No usable configuration. The message names the file and the field."""


def no_token() -> str | None:
    """Return no token, for a user with a client certificate."""
    return None


@dataclass(frozen=True)
class ApiServer:
    """An API server and the credentials for it.

    `url` has no path. `token` is called before every request. `server_name` is the expected name in
    the certificate.
    """

    url: str
    tls: ssl.SSLContext
    token: Callable[[], str | None] = no_token
    server_name: str | None = None


class TokenFile:
    """A bearer token in a file, read again when the file changes. Raises OSError if unreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def __call__(self) -> str:
        """Return the current token."""
        stat = self._path.stat()
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen != self._seen:
            self._token = self._path.read_text().strip()
            self._seen = seen
        return self._token


def in_cluster(
    environment: Mapping[str, str] = os.environ, service_account: Path = SERVICE_ACCOUNT
) -> ApiServer:
    """Return the API server of this pod.

    Raises KubeconfigError outside a pod or without a service account.
    """
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST"),
        environment.get("KUBERNETES_SERVICE_PORT"),
    )
    if not host or not port:
        raise KubeconfigError(
            "not in a pod (KUBERNETES_SERVICE_HOST is not set): use --kubeconfig or --config"
        )
    token = TokenFile(service_account / "token")
    try:
        token()
        tls = ssl.create_default_context(cafile=str(service_account / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise KubeconfigError(
            f"the service account in {service_account} is not usable: {error}"
        ) from error
    return ApiServer(f"https://{f'[{host}]' if ':' in host else host}:{port}", tls, token)


def from_kubeconfig(path: Path) -> ApiServer:
    """Return the API server of a kubeconfig's current context. Raises KubeconfigError."""
    try:
        return _Kubeconfig(path, _read(path)).server()
    except (OSError, ssl.SSLError) as error:
        raise KubeconfigError(f"{path}: {error}") from error


def _read(path: Path) -> Any:
    text = path.read_text()
    try:
        return json.loads(text)
    except ValueError:
        import yaml  # costs memory that most agents do not need

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise KubeconfigError(f"{path}: not YAML: {error}") from error


class _Kubeconfig:
    """The content of a kubeconfig. As in kubectl, file names are relative to its directory."""

    def __init__(self, path: Path, content: Any) -> None:
        self._path = path
        self._content = content

    def server(self) -> ApiServer:
        if not isinstance(self._content, dict):
            raise self._error("not a kubeconfig: not an object")
        context = self._entry("contexts", "context", self._content.get("current-context"))
        cluster = self._entry("clusters", "cluster", context.get("cluster"))
        user = self._entry("users", "user", context.get("user"))
        url = cluster.get("server")
        if not isinstance(url, str) or not url.startswith("https://"):
            raise self._error("cluster.server: not an https:// address")
        return ApiServer(
            url.rstrip("/"),
            self._tls(cluster, user),
            self._token(user),
            cluster.get("tls-server-name"),
        )

    def _entry(self, plural: str, key: str, name: object) -> dict[str, Any]:
        entries = self._content.get(plural)
        for entry in entries if isinstance(entries, list) else []:
            if (
                isinstance(entry, dict)
                and entry.get("name") == name
                and isinstance(entry.get(key), dict)
            ):
                fields: dict[str, Any] = entry[key]
                return fields
        raise self._error(f"{plural}: no entry has the name {name!r}")

    def _tls(self, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
        authority = self._data(cluster, "certificate-authority")
        tls = ssl.create_default_context(cadata=authority.decode("ascii") if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        certificate, key = self._data(user, "client-certificate"), self._data(user, "client-key")
        if certificate and key:
            with _as_file(certificate) as certificate_path, _as_file(key) as key_path:
                tls.load_cert_chain(certificate_path, key_path)
        return tls

    def _token(self, user: Mapping[str, Any]) -> Callable[[], str | None]:
        for field in _UNSUPPORTED_USER_FIELDS:
            if field in user:
                raise self._error(
                    f"user.{field}: not supported, use a token or a client certificate"
                )
        if isinstance(name := user.get("tokenFile"), str):
            return TokenFile(self._path.parent / name)
        token = user.get("token")
        return (lambda: token) if isinstance(token, str) else no_token

    def _data(self, fields: Mapping[str, Any], name: str) -> bytes | None:
        """Return the inline `name`-data, or the content of the file `name`.

        As in kubectl, inline wins.
        """
        if inline := fields.get(f"{name}-data"):
            try:
                return base64.b64decode(inline, validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise self._error(f"{name}-data: not base64") from error
        file = fields.get(name)
        return (self._path.parent / file).read_bytes() if isinstance(file, str) else None

    def _error(self, message: str) -> KubeconfigError:
        return KubeconfigError(f"{self._path}: {message}")


@contextmanager
def _as_file(data: bytes) -> Any:
    """Return a file name for `data`, which stays in memory: OpenSSL accepts only files."""
    descriptor = os.memfd_create("credential", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"
