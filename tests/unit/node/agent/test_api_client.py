"""The API client against a server on loopback that is broken or busy; tests/api uses a real one."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pinwarden.common.backoff import Backoff
from pinwarden.node.agent.api_client import ApiError, Event, NodePinConfigClient, Object
from pinwarden.node.agent.kubeconfig import ApiServer

Reply = tuple[int, dict[str, str], bytes]
META = {"uid": "u", "generation": 3, "resourceVersion": "9"}
SERVED = {"metadata": META, "spec": {"mode": "Active"}}


class Server(HTTPServer):
    reply: Reply = (200, {}, b"")
    requests: list[tuple[str, str, str | None, bytes]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(
            (self.command, self.path, self.headers.get("Authorization"), body)
        )
        status, headers, content = self.server.reply
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_PATCH = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> NodePinConfigClient:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return NodePinConfigClient(
        ApiServer(url, ssl.create_default_context(), lambda: "t0ken"), "node-1"
    )


def lines(*events: object) -> Reply:
    return 200, {}, b"".join(json.dumps(event).encode() + b"\n" for event in events)


def answer(content: object) -> Reply:
    return 200, {}, json.dumps(content).encode()


def test_list_selects_only_the_own_object(server: Server, client: NodePinConfigClient) -> None:
    server.reply = answer({"metadata": {"resourceVersion": "12"}, "items": [SERVED]})
    assert client.list_own() == (Object("u", 3, {"mode": "Active"}), "12")
    method, path, authorization, _ = server.requests[0]
    assert (method, authorization) == ("GET", "Bearer t0ken")
    assert path == "/apis/pinwarden.io/v1alpha1/nodepinconfigs?fieldSelector=metadata.name%3Dnode-1"


def test_a_missing_object_is_none(server: Server, client: NodePinConfigClient) -> None:
    server.reply = answer({"metadata": {"resourceVersion": "12"}, "items": []})
    assert client.list_own() == (None, "12")


def test_watch_yields_events_in_order(server: Server, client: NodePinConfigClient) -> None:
    server.reply = lines(
        {"type": "ADDED", "object": SERVED},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "15"}}},
        {"type": "DELETED", "object": SERVED},
    )
    assert list(client.watch_own("8")) == [
        Event("9", Object("u", 3, {"mode": "Active"})),
        Event("15"),
        Event("9", deleted=True),
    ]
    assert "resourceVersion=8&allowWatchBookmarks=true" in server.requests[0][1]


def test_an_expired_watch_raises_status_410(server: Server, client: NodePinConfigClient) -> None:
    server.reply = lines(
        {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    )
    with pytest.raises(ApiError, match="too old resource version") as caught:
        list(client.watch_own("8"))
    assert caught.value.status == 410


def test_replace_status_replaces_the_whole_status_of_one_uid(
    server: Server, client: NodePinConfigClient
) -> None:
    server.reply = answer({})
    client.replace_status("u", {"observedGeneration": 3})
    method, path, _, body = server.requests[0]
    assert (method, path.partition("?")[0]) == (
        "PATCH",
        "/apis/pinwarden.io/v1alpha1/nodepinconfigs/node-1/status",
    )
    assert json.loads(body) == [
        {"op": "test", "path": "/metadata/uid", "value": "u"},
        {"op": "add", "path": "/status", "value": {"observedGeneration": 3}},
    ]


def test_an_error_has_the_servers_message_and_retry_after(
    server: Server, client: NodePinConfigClient
) -> None:
    server.reply = (
        429,
        {"Retry-After": "2"},
        json.dumps({"message": "too many requests"}).encode(),
    )
    with pytest.raises(ApiError, match="HTTP 429: too many requests") as caught:
        client.list_own()
    assert (caught.value.status, caught.value.retry_after) == (429, 2.0)
    server.reply = (503, {"Retry-After": "soon"}, b"<html>")
    with pytest.raises(ApiError, match="HTTP 503: <html>") as caught:
        list(client.watch_own("8"))
    assert caught.value.retry_after == 0


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, b"not json"),
        (200, {}, b"[]"),
        answer({"items": []}),
        answer({"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {}}]}),
    ],
)
def test_an_invalid_answer_is_an_error(
    server: Server, client: NodePinConfigClient, reply: Reply
) -> None:
    server.reply = reply
    with pytest.raises(ApiError):
        client.list_own()


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, b'{"type": "ADD'),
        lines({"type": "ADDED"}),
        lines({"type": "NEWS", "object": {}}),
        (200, {"Transfer-Encoding": "chunked"}, b"5\r\nab"),
    ],
)
def test_an_invalid_watch_is_an_error(
    server: Server, client: NodePinConfigClient, reply: Reply
) -> None:
    server.reply = reply
    with pytest.raises(ApiError):
        list(client.watch_own("8"))


def test_an_unreachable_server_is_an_error_without_a_status() -> None:
    nobody = NodePinConfigClient(
        ApiServer("http://127.0.0.1:1", ssl.create_default_context()), "node-1"
    )
    for call in (
        nobody.list_own,
        lambda: list(nobody.watch_own("1")),
        lambda: nobody.replace_status("u", {}),
    ):
        with pytest.raises(ApiError, match=r"no answer from http://127\.0\.0\.1:1") as caught:
            call()
        assert caught.value.status is None


def test_an_unreadable_token_is_an_error(server: Server) -> None:
    def unreadable() -> str:
        raise FileNotFoundError(2, "No such file", "token")

    url = f"http://127.0.0.1:{server.server_address[1]}"
    client = NodePinConfigClient(ApiServer(url, ssl.create_default_context(), unreadable), "node-1")
    with pytest.raises(ApiError, match="No such file"):
        client.list_own()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_backoff_doubles_up_to_its_cap_and_resets(share: float) -> None:
    def uniform(low: float, high: float) -> float:
        return low + share * (high - low)

    backoff = Backoff(1.0, 4.0, uniform, asked_cap=4.0)
    factor = 0.5 + share / 2
    assert [backoff.failed() for _ in range(4)] == [factor * delay for delay in (1, 2, 4, 4)]
    backoff.succeeded()
    assert backoff.failed() == factor
    assert backoff.failed(at_least=100) == 4.0


def test_backoff_is_random() -> None:
    delay: Callable[[], float] = Backoff(0.1, 4.0).failed
    assert all(0 < delay() <= 4.0 for _ in range(20))
