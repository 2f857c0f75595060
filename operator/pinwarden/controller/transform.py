"""Transforms from API objects to the few fields in the store; equal parts are shared."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pinwarden.controller.client import Json
from pinwarden.plan.decode import is_lost, read_agent, read_namespace, read_node, read_pod
from pinwarden.plan.types import Namespace, Node, Pod


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A node, and the UID that owns its NodePinConfig; `lost` if it is unreachable."""

    node: Node
    uid: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class AgentPod:
    """A pod of the node agent; `ready` is the readiness of the agent's container."""

    uid: str
    node: str
    ready: bool


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """A stored NodePinConfig: a digest of its spec and owner, and the fields to read."""

    name: str
    uid: str
    generation: int
    digest: bytes
    config: Json


@dataclass(frozen=True, slots=True)
class StoredSpec:
    """The spec of a stored NodePinConfig; the UID is empty after a deletion."""

    uid: str
    generation: int
    digest: bytes


def pod(raw: Json) -> tuple[str, Pod]:
    """Return a pod and its UID as the key."""
    value = read_pod(raw)
    return value.uid, value


def agent_pod(raw: Json) -> tuple[str, AgentPod]:
    """Return a pod of the agent and its UID as the key."""
    uid = raw["metadata"]["uid"]
    return uid, AgentPod(uid, *read_agent(raw))


def node(raw: Json) -> tuple[str, KnownNode]:
    """Return a node and its name as the key."""
    value = read_node(raw)
    return value.name, KnownNode(value, raw["metadata"]["uid"], is_lost(raw))


def namespace(raw: Json) -> tuple[str, Namespace]:
    """Return a namespace and its name as the key."""
    value = read_namespace(raw)
    return value.name, value


def node_pin_config(raw: Json) -> tuple[str, StoredConfig]:
    """Return a NodePinConfig and its name as the key."""
    metadata = raw["metadata"]
    config: Json = {key: raw[key] for key in ("spec", "status") if key in raw}
    config["metadata"] = {key: metadata.get(key) for key in ("name", "uid", "generation")}
    owners = [
        owner.get("uid", "")
        for owner in metadata.get("ownerReferences") or ()
        if owner["kind"] == "Node"
    ]
    digest = digest_of(canonical(raw.get("spec") or {}), ",".join(owners))
    return metadata["name"], StoredConfig(
        metadata["name"], metadata["uid"], metadata.get("generation") or 0, digest, config
    )


def canonical(value: Any) -> bytes:
    """Return the same JSON for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest_of(spec: bytes, owner: str) -> bytes:
    """Return a digest of 16 bytes for a canonical spec and the UID of the owning node."""
    return hashlib.blake2b(spec, digest_size=16, person=b"npc", salt=_salt(owner)).digest()


@lru_cache(maxsize=8192)
def _salt(owner: str) -> bytes:
    return hashlib.blake2b(owner.encode(), digest_size=16).digest()
