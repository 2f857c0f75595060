"""The spec of a NodePinConfig: the limits, pods and groups of one node."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema

from pinwarden.api.meta import Model, describe_error
from pinwarden.api.pinlimit import Contention, Counting, Enforcement, Level, Scope, Source
from pinwarden.api.sharedmemorygroup import Accounting, Backing, LimitOn, Management, Owner, Path

_Part = TypeVar("_Part", bound=Model)


def _at_most(items: int) -> dict[str, JsonValue]:
    """Return the schema of a list bounded by the API server only; an agent adds pods (H3)."""
    return {"maxItems": items}


class Mode(StrEnum):
    """Whether a node's agent applies limits, or restores the original limits of all processes."""

    ACTIVE = "Active"
    RELEASE = "Release"


class NodeLimit(Model):
    """A constraint (P13) as compiled for a node; amounts are in bytes."""

    name: str = Field(
        max_length=384,
        description="namespace/name of a PinLimit, or name of a ClusterPinLimit; followed by "
        "@bytes if pods differ in the grant.",
    )
    uid: str = Field(max_length=64, description="UID of the resource.")
    scope: Scope
    limit: int = Field(ge=0, description="Bytes that may be pinned and locked.")
    containers: list[str] = Field(
        default_factory=list,
        description="With scope Container: names of the containers; empty selects all.",
    )
    cgroup_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="Shell pattern of cgroup directories below the root, for hosts without "
        "Kubernetes. The limit applies to each match.",
    )
    counting: Counting = Counting.EVERY_PIN
    sources: list[Source] = Field(
        default_factory=list, description="The counted sources; empty means all."
    )
    enforcement: Enforcement = Enforcement.ENFORCE
    minimum_level: Level = Field(
        Level.CONVERGE,
        description="With Deny, a gate also denies calls after which it could not limit the pod "
        "exactly.",
    )
    contention: Contention = Contention.SHARE
    grant: int | None = Field(
        None,
        ge=0,
        description="Bytes up to which processes may be raised, already bounded by maxGrant (P14).",
    )

    @cached_property
    def hash(self) -> str:
        """12 hex digits of the constraint, which the agent acknowledges."""
        return _hash(self)


class PodContainer(Model):
    """A container of a pod: its name, and its id once the kubelet has reported it."""

    name: str
    id: str | None = None


class NodePod(Model):
    """A pod of the node, with or without limits."""

    uid: str = Field(
        max_length=64,
        description="UID in the name of the pod's cgroup; for a static pod the hash of its "
        "configuration.",
    )
    limits: list[str] = Field(
        default_factory=list, description="Names of the limits that apply to the pod."
    )
    containers: list[PodContainer] = Field(
        default_factory=list,
        description="Listed if a limit with scope Container applies to the pod.",
    )

    def with_claim(self, other: "NodePod") -> "NodePod":
        """Return both entries of one cgroup as one; a container keeps its id only if both agree."""
        ids = {container.name: container.id for container in self.containers}
        for name, identity in ((container.name, container.id) for container in other.containers):
            ids[name] = identity if ids.get(name, identity) == identity else None
        return NodePod(
            uid=self.uid,
            limits=list(dict.fromkeys([*self.limits, *other.limits])),
            containers=[PodContainer(name=name, id=identity) for name, identity in ids.items()],
        )


class NodeMember(Model):
    """Member pods of a group, and how much each may borrow (M8); amounts are in bytes."""

    pods: list[str] = Field(
        json_schema_extra=_at_most(4096), description="UIDs in the names of their cgroups."
    )
    borrow_limit: int | None = Field(None, ge=0)
    borrow_limit_on: LimitOn = LimitOn.MAPPED


class NodeGroup(Model):
    """A SharedMemoryGroup as compiled for a node; amounts are in bytes."""

    name: str = Field(max_length=384, description="namespace/name of the resource.")
    uid: str = Field(max_length=64, description="UID of the resource.")
    backing: Backing
    allowed: Path | None = Field(
        None,
        description="For a backing with a path: the folder that the administrator allowed. No "
        "symbolic link leads out of it.",
    )
    management: Management
    owner: Owner | None = None
    prefault: bool = True
    capacity: int | None = Field(None, ge=0)
    accounting: Accounting
    fair_share: Accounting
    enforcement: Enforcement = Enforcement.ENFORCE
    members: list[NodeMember] = Field(default_factory=list, json_schema_extra=_at_most(16))
    draining: bool = Field(
        False,
        description="New borrows are denied. A created object is removed with its last borrower; "
        "then the report says Released.",
    )

    asked_hash: SkipJsonSchema[str | None] = Field(None, exclude=True)
    """The hash of the group in the operator's spec, if the agent added pods; local to the node."""

    @cached_property
    def hash(self) -> str:
        """12 hex digits of the group, which the agent acknowledges."""
        return self.asked_hash or _hash(self)

    def pods(self) -> frozenset[str]:
        """Return the UIDs of all member pods."""
        return frozenset(uid for member in self.members for uid in member.pods)


def _hash(part: Model) -> str:
    return hashlib.sha256(json.dumps(part.to_wire(), sort_keys=True).encode()).hexdigest()[:12]


class UnsupportedLimit(NamedTuple):
    """A limit or group of another version; the agent reports it, and the others still apply."""

    name: str
    uid: str
    message: str


class NodePinConfigSpec(Model):
    """The desired state of the node; only the operator writes it."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    mode: Mode = Field(
        Mode.ACTIVE,
        description="With Release, the agent restores the original limit of every process, and "
        "acknowledges it.",
    )
    unknown_pods: int | None = Field(
        None,
        ge=0,
        description="Bytes that a pod outside of this list may pin; absent means no limit.",
    )
    limits: list[NodeLimit] = Field(default_factory=list, max_length=1024)
    pods: list[NodePod] = Field(default_factory=list, json_schema_extra=_at_most(4096))
    groups: list[NodeGroup] = Field(default_factory=list, max_length=256)
    limited_namespaces: list[str] | None = Field(
        None,
        max_length=128,
        description="Namespaces whose pods a limit or group may select; absent means all except "
        "exemptNamespaces. The NRI plugin gates unlisted pods only in these namespaces.",
    )
    exempt_namespaces: list[str] = Field(
        default_factory=list,
        max_length=128,
        description="Without limitedNamespaces: namespaces whose pods no limit or group selects.",
    )

    @field_validator("pods")
    @classmethod
    def _each_once(cls, pods: list[NodePod]) -> list[NodePod]:
        """Join entries with the same UID, because the limits of all entries apply (P13)."""
        by_uid: dict[str, NodePod] = {}
        for pod in pods:
            by_uid[pod.uid] = by_uid[pod.uid].with_claim(pod) if pod.uid in by_uid else pod
        return list(by_uid.values())

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> tuple["NodePinConfigSpec", list[UnsupportedLimit]]:
        """Return the spec without limits and groups of other versions, and these limits and groups.

        Pods keep the names of such limits, so they never count as pods without limits.

        Raises:
            pydantic.ValidationError: the rest of the spec is not understood.
        """
        limits, unsupported = _known(NodeLimit, raw.get("limits", []))
        groups, more = _known(NodeGroup, raw.get("groups", []))
        spec = cls.model_validate({**raw, "limits": [], "groups": []})
        return spec.model_copy(update={"limits": limits, "groups": groups}), [*unsupported, *more]


def _known(
    kind: type[_Part], entries: Iterable[object]
) -> tuple[list[_Part], list[UnsupportedLimit]]:
    """Return the entries of this version, and the other entries with their errors."""
    known: list[_Part] = []
    unsupported: list[UnsupportedLimit] = []
    for entry in entries:
        try:
            known.append(kind.model_validate(entry))
        except ValidationError as error:
            fields = entry if isinstance(entry, Mapping) else {}
            unsupported.append(
                UnsupportedLimit(
                    str(fields.get("name", "")),
                    str(fields.get("uid", "")),
                    describe_error(error, root="entry"),
                )
            )
    return known, unsupported
