"""The certificates of one test cluster, made with the openssl command and valid for a month.

One authority signs the API server's certificate and those of the users: a client certificate's
common name is the user and its organizations are the groups (Kubernetes documentation, "X.509
client certificates"), so a user can be made while the API server runs.
"""

import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError

DAYS = "30"
SETTINGS = """
[req]
distinguished_name = name
prompt = no
[name]
CN = pinwarden-test-cluster
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
authorityKeyIdentifier = keyid
subjectAltName = IP:127.0.0.1, IP:10.0.0.1, IP:10.99.0.1, DNS:localhost, DNS:kubernetes.default.svc
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
"""


def _openssl(*arguments: str | Path) -> None:
    try:
        done = subprocess.run(
            ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(
            "openssl is not on PATH: install it (Debian: apt-get install openssl)"
        ) from error
    if done.returncode:
        raise ClusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")


def _quoted(value: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\/+" else letter for letter in value)


class Authority:
    """A certificate authority in a folder, and the service account keys beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = folder / "openssl.cnf"
        self._settings.write_text(SETTINGS)
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        self._make_key(self._key)
        _openssl(
            *("req", "-x509", "-new", "-config", self._settings, "-extensions", "authority"),
            *("-key", self._key, "-days", DAYS, "-out", self.certificate),
        )
        self.service_account_key = folder / "service-account.key"
        self.service_account_public_key = folder / "service-account.pub"
        self._make_key(self.service_account_key)
        _openssl(
            "pkey",
            "-in",
            self.service_account_key,
            "-pubout",
            "-out",
            self.service_account_public_key,
        )

    @staticmethod
    def _make_key(path: Path) -> None:
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)

    def _issue(self, stem: str, kind: str, subject: str) -> tuple[Path, Path]:
        request, certificate, key = (
            self._folder / f"{stem}.{end}" for end in ("csr", "crt", "key")
        )
        self._make_key(key)
        _openssl(
            *("req", "-new", "-config", self._settings, "-key", key),
            *("-utf8", "-subj", subject, "-out", request),
        )
        _openssl(
            *(
                "x509",
                "-req",
                "-in",
                request,
                "-CA",
                self.certificate,
                "-CAkey",
                self._key,
                "-days",
                DAYS,
            ),
            *("-set_serial", f"0x{secrets.token_hex(8)}"),
            *("-extfile", self._settings, "-extensions", kind, "-out", certificate),
        )
        return certificate, key

    def server(self) -> tuple[Path, Path]:
        """Return certificate and key files of an API server: on loopback, and at the addresses of
        network.py.
        """
        return self._issue("server", "server", "/CN=kube-apiserver")

    def client(self, user: str, groups: Sequence[str]) -> tuple[Path, Path]:
        """Return certificate and key files of a user in groups.

        Raises ClusterError when a name is longer than X.509 allows (64 characters).
        """
        subject = "".join(f"/O={_quoted(group)}" for group in groups) + f"/CN={_quoted(user)}"
        return self._issue(f"client-{secrets.token_hex(4)}", "client", subject)
