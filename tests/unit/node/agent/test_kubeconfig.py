"""The API server and the credentials: every kind, and which ones are rejected by name."""

import base64
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pinwarden.node.agent.kubeconfig import (
    ApiServer,
    KubeconfigError,
    TokenFile,
    from_kubeconfig,
    in_cluster,
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]
    files = ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=test"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return certificate, key


def write(folder: Path, *, cluster: Any = None, user: Any = None, **changes: Any) -> Path:
    content = {
        "clusters": [
            {"name": "c", "cluster": {"server": "https://10.0.0.1:6443/", **(cluster or {})}}
        ],
        "users": [{"name": "u", "user": {"token": "secret"} if user is None else user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        **changes,
    }
    path = folder / "config"
    path.write_text(json.dumps(content))
    return path


def inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_a_token_is_sent(tmp_path: Path) -> None:
    server = from_kubeconfig(write(tmp_path))
    assert (server.url, server.token(), server.server_name) == (
        "https://10.0.0.1:6443",
        "secret",
        None,
    )
    assert server.tls.verify_mode is ssl.CERT_REQUIRED


def test_a_token_file_relative_to_the_kubeconfig_is_read_again_when_it_changed(
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("first\n")
    server = from_kubeconfig(write(tmp_path, user={"tokenFile": "token"}))
    assert server.token() == "first"
    (tmp_path / "token").write_text("second one\n")
    assert server.token() == "second one"


def test_a_token_replaced_through_a_link_as_the_kubelet_does(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    link = tmp_path / "data"
    link.symlink_to("a")
    token = TokenFile(link / "token")
    assert token() == "a"
    link.unlink()
    link.symlink_to("b")
    assert token() == "b"


@pytest.mark.parametrize("as_data", [True, False])
def test_a_client_certificate(
    tmp_path: Path, certificate: tuple[Path, Path], as_data: bool
) -> None:
    names = ("client-certificate", "client-key")
    files = dict(zip(names, certificate, strict=True))
    user = (
        {f"{n}-data": inline(f) for n, f in files.items()}
        if as_data
        else {n: str(f) for n, f in files.items()}
    )
    cluster = {"certificate-authority": str(certificate[0]), "tls-server-name": "kubernetes"}
    server = from_kubeconfig(write(tmp_path, cluster=cluster, user=user))
    assert server.token() is None
    assert server.server_name == "kubernetes"
    assert [one["subject"] for one in server.tls.get_ca_certs()] == [((("commonName", "test"),),)]


def test_inline_authority_wins_over_a_file(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cluster = {
        "certificate-authority": "/nowhere",
        "certificate-authority-data": inline(certificate[0]),
    }
    assert len(from_kubeconfig(write(tmp_path, cluster=cluster)).tls.get_ca_certs()) == 1


def test_insecure_skip_tls_verify_skips_verification(tmp_path: Path) -> None:
    server = from_kubeconfig(write(tmp_path, cluster={"insecure-skip-tls-verify": True}))
    assert server.tls.verify_mode is ssl.CERT_NONE


def test_a_yaml_kubeconfig_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "clusters: [{name: c, cluster: {server: 'https://h'}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
        "contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n"
    )
    assert from_kubeconfig(path).token() == "t"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"current-context": "y"}, "contexts: no entry has the name 'y'"),
        ({"clusters": None}, "clusters: no entry has the name 'c'"),
        ({"cluster": {"server": "http://h"}}, "cluster.server: not an https:// address"),
        (
            {"cluster": {"certificate-authority-data": "%"}},
            "certificate-authority-data: not base64",
        ),
        ({"cluster": {"certificate-authority": "/nowhere"}}, "No such file"),
        ({"user": {"exec": {"command": "aws"}}}, "user.exec: not supported"),
        ({"user": {"username": "a", "password": "b"}}, "user.username: not supported"),
    ],
)
def test_an_unusable_entry_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KubeconfigError, match=message):
        from_kubeconfig(write(tmp_path, **changes))


@pytest.mark.parametrize("text", ["a: [", "[]", "just text"])
def test_an_invalid_kubeconfig_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(KubeconfigError, match=r"config: not (YAML|a kubeconfig)"):
        from_kubeconfig(path)


def pod(folder: Path, certificate: Path, host: str) -> ApiServer:
    (folder / "token").write_text("bound")
    (folder / "ca.crt").write_bytes(certificate.read_bytes())
    return in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}, folder)


@pytest.mark.parametrize(
    ("host", "url"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pod_uses_its_service_account(
    tmp_path: Path, certificate: tuple[Path, Path], host: str, url: str
) -> None:
    server = pod(tmp_path, certificate[0], host)
    assert (server.url, server.token()) == (url, "bound")


def test_an_agent_outside_a_pod_names_the_options(tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError, match="use --kubeconfig or --config"):
        in_cluster({}, tmp_path)
    with pytest.raises(KubeconfigError, match="is not usable"):
        in_cluster(
            {"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "1"}, tmp_path / "none"
        )
