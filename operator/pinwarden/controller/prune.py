"""What is kept of an object of the API server: a few fields of it, as values that share what they have in common."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pinwarden.controller.client import Json
from pinwarden.plan.allowed import ANNOTATION
from pinwarden.plan.world import Namespace, Node, Pod

_STATIC_HASH = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash")
_AGENT = "agent"
_TERMINAL = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A node with the UID that its NodePinConfig is owned by."""

    node: Node
    uid: str


@dataclass(frozen=True, slots=True)
class AgentPod:
    """A pod of the node agent: alive while its agent's container is ready."""

    uid: str
    node: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Held:
    """A NodePinConfig as the API server has it; `digest` is that of its spec and owner, `config` the object without what nobody reads."""

    name: str
    uid: str
    generation: int
    digest: bytes
    config: Json


def pod(raw: Json) -> tuple[str, Pod]:
    """A pod by its UID; static pods bear the hash of their configuration in the name of their cgroup."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    uid = metadata["uid"]
    annotations = metadata.get("annotations") or {}
    static = next((annotations[name] for name in _STATIC_HASH if annotations.get(name)), None)
    containers: dict[str, str | None] = {
        each["name"]: None for part in ("initContainers", "containers") for each in spec.get(part) or ()
    }
    for part in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for each in status.get(part) or ():
            containers[each["name"]] = _container_id(each.get("containerID"))
    return uid, Pod.of(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=uid,
        cgroup_uid=static or uid,
        node=spec.get("nodeName") or "",
        labels=metadata.get("labels") or {},
        containers=containers,
        terminal=status.get("phase") in _TERMINAL,
    )


def agent_pod(raw: Json) -> tuple[str, AgentPod]:
    """A pod of the agent by its UID."""
    uid = raw["metadata"]["uid"]
    status = raw.get("status") or {}
    conditions = status.get("conditions") or ()
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    for each in status.get("containerStatuses") or ():
        if (
            each["name"] == _AGENT
        ):  # the others have their own word: a gate or an accountant that is away is told by it
            ready = each["ready"]
    leaving = "deletionTimestamp" in raw["metadata"]
    return uid, AgentPod(uid, raw["spec"].get("nodeName") or "", ready and not leaving)


def node(raw: Json) -> tuple[str, KnownNode]:
    """A node by its name."""
    metadata = raw["metadata"]
    name = metadata["name"]
    return name, KnownNode(Node(name, _labels(metadata)), metadata["uid"])


def namespace(raw: Json) -> tuple[str, Namespace]:
    """A namespace by its name."""
    metadata = raw["metadata"]
    return metadata["name"], Namespace(
        metadata["name"],
        _labels(metadata),
        allowed=(metadata.get("annotations") or {}).get(ANNOTATION, ""),
        terminating="deletionTimestamp" in metadata,
    )


def node_pin_config(raw: Json) -> tuple[str, Held]:
    """A NodePinConfig by its name."""
    metadata = raw["metadata"]
    config: Json = {key: raw[key] for key in ("spec", "status") if key in raw}
    config["metadata"] = {key: metadata.get(key) for key in ("name", "uid", "generation")}
    owners = [each.get("uid", "") for each in metadata.get("ownerReferences") or () if each["kind"] == "Node"]
    digest = digest_of(canonical(raw.get("spec") or {}), ",".join(owners))
    return metadata["name"], Held(
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


def _container_id(text: str | None) -> str | None:
    """`containerd://0123...` without the runtime's name, as the container's cgroup is named."""
    return text.rpartition("//")[2] or None if text else None


def _labels(metadata: Json) -> dict[str, str]:
    return metadata.get("labels") or {}
