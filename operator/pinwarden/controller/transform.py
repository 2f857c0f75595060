"""What is kept of an object of the API server: a few fields of it, as values that share what they have in common."""

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
    """A node with the UID that its NodePinConfig is owned by; `lost` while the node controller does not hear of it."""

    node: Node
    uid: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class AgentPod:
    """A pod of the node agent: alive while its agent's container is ready and its node is not lost."""

    uid: str
    node: str
    ready: bool


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """A NodePinConfig as the API server has it; `digest` is that of its spec and owner, `config` the object without what nobody reads."""

    name: str
    uid: str
    generation: int
    digest: bytes
    config: Json


@dataclass(frozen=True, slots=True)
class StoredSpec:
    """The spec of a NodePinConfig on the API server; of one that is gone the UID is empty."""

    uid: str
    generation: int
    digest: bytes


def pod(raw: Json) -> tuple[str, Pod]:
    """A pod by its UID."""
    value = read_pod(raw)
    return value.uid, value


def agent_pod(raw: Json) -> tuple[str, AgentPod]:
    """A pod of the agent by its UID."""
    uid = raw["metadata"]["uid"]
    return uid, AgentPod(uid, *read_agent(raw))


def node(raw: Json) -> tuple[str, KnownNode]:
    """A node by its name."""
    value = read_node(raw)
    return value.name, KnownNode(value, raw["metadata"]["uid"], is_lost(raw))


def namespace(raw: Json) -> tuple[str, Namespace]:
    """A namespace by its name."""
    value = read_namespace(raw)
    return value.name, value


def node_pin_config(raw: Json) -> tuple[str, StoredConfig]:
    """A NodePinConfig by its name."""
    metadata = raw["metadata"]
    config: Json = {key: raw[key] for key in ("spec", "status") if key in raw}
    config["metadata"] = {key: metadata.get(key) for key in ("name", "uid", "generation")}
    owners = [each.get("uid", "") for each in metadata.get("ownerReferences") or () if each["kind"] == "Node"]
    digest = digest_of(canonical(raw.get("spec") or {}), ",".join(owners))
    return metadata["name"], StoredConfig(
        metadata["name"], metadata["uid"], metadata.get("generation") or 0, digest, config
    )


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest_of(spec: bytes, owner: str) -> bytes:
    """16 bytes that stand for the canonical spec of a NodePinConfig and the UID of the node that owns it."""
    return hashlib.blake2b(spec, digest_size=16, person=b"npc", salt=_salt(owner)).digest()


@lru_cache(maxsize=8192)
def _salt(owner: str) -> bytes:
    return hashlib.blake2b(owner.encode(), digest_size=16).digest()
