"""The container of a listener, from the message of the container runtime."""

import json
from typing import Any

import pytest

from pinwarden.node.gate.container import ContainerRef, parse

ID = "a1" * 32


def state(**annotations: str) -> bytes:
    return json.dumps({"pid": 1, "state": {"id": ID, "annotations": annotations}}).encode()


def test_message_of_each_runtime_names_the_container() -> None:
    containerd = {
        "io.kubernetes.cri.sandbox-uid": "u",
        "io.kubernetes.cri.container-name": "main",
        "io.kubernetes.cri.sandbox-id": "s",
    }
    crio = {
        "io.kubernetes.pod.uid": "u",
        "io.kubernetes.container.name": "main",
        "io.kubernetes.cri-o.SandboxID": "s",
    }
    for annotations in (containerd, crio):
        container = parse(state(**annotations))
        assert (container.id, container.ref, container.sandbox) == (
            ID,
            ContainerRef("u", "main"),
            "s",
        )


def test_container_outside_kubernetes_has_no_pod() -> None:
    assert parse(state()).ref == ContainerRef("", "")


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        (None, 1),
        ("", 1),
        ("pinwarden-v2", 2),
        ("pinwarden-v10", 10),
        ("other", 1),
        (5, 1),
        ("pinwarden-v2x", 1),
    ],
)
def test_profile_metadata_has_the_version(metadata: object, version: int) -> None:
    message = json.dumps({"metadata": metadata, "state": {"id": ID}}).encode()
    assert (parse(message).version, parse(message).maps) == (version, version > 1)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"state": 5}',
        b'{"state": {"id": 5}}',
        b'{"state": {"id": "a", "annotations": 7}}',
    ],
)
def test_message_of_no_runtime_is_rejected(message: bytes) -> None:
    with pytest.raises(ValueError, match="not an OCI container process state"):
        parse(message)


def test_annotation_that_is_not_text_is_rejected() -> None:
    content: dict[str, Any] = {"state": {"id": ID, "annotations": {"io.kubernetes.pod.uid": 5}}}
    with pytest.raises(ValueError, match="not text"):
        parse(json.dumps(content).encode())
