"""The spec of a NodePinConfig: the limits, pods and groups of one node."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema

from pinwarden.api.meta import Model
from pinwarden.api.pinlimit import Contention, Counting, Enforcement, Level, Scope, Source
from pinwarden.api.sharedmemorygroup import Accounting, Backing, LimitOn, Management, Owner, Path

_Part = TypeVar("_Part", bound=Model)


def _at_most(items: int) -> dict[str, JsonValue]:
    """Return the schema of a list that the API server alone bounds: on its node, an agent adds pods that are retained (H3)."""
    return {"maxItems": items}


class Mode(StrEnum):
    """Whether a node's agent governs, or gives everything back."""

    ACTIVE = "Active"
    RELEASE = "Release"


class NodeLimit(Model):
    """One constraint (P13) as compiled for a node; amounts in bytes."""

    name: str = Field(
        max_length=384,
        description="namespace/name of a PinLimit, name of a ClusterPinLimit; @bytes where pods differ in the grant.",
    )
    uid: str = Field(max_length=64, description="UID of the resource behind it.")
    scope: Scope
    limit: int = Field(ge=0, description="Bytes that may be pinned and locked.")
    containers: list[str] = Field(
        default_factory=list, description="With scope Container: their names; empty means each."
    )
    cgroup_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="Shell pattern of cgroup directories below the root, for hosts without Kubernetes: each that matches is a subject.",
    )
    counting: Counting = Counting.EVERY_PIN
    sources: list[Source] = Field(
        default_factory=list, description="What is counted; empty means every source."
    )
    enforcement: Enforcement = Enforcement.ENFORCE
    minimum_level: Level = Field(
        Level.CONVERGE,
        description="With Deny a gate also refuses calls after which it could not hold the pod exactly.",
    )
    contention: Contention = Contention.SHARE
    grant: int | None = Field(
        None, ge=0, description="Bytes up to which processes may be raised, already held to maxGrant (P14)."
    )

    @cached_property
    def hash(self) -> str:
        """12 hex digits that change when anything of the constraint does; the agent acknowledges them."""
        return _hash(self)


class PodContainer(Model):
    """A container of a pod: its name, and its id once the kubelet reported one."""

    name: str
    id: str | None = None


class NodePod(Model):
    """A pod bound to the node: free where it has no limits."""

    uid: str = Field(
        max_length=64, description="UID that the pod's cgroup bears; the config hash of a static pod."
    )
    limits: list[str] = Field(default_factory=list, description="Names of the limits that hold for it.")
    containers: list[PodContainer] = Field(
        default_factory=list, description="Listed where a limit of scope Container holds for the pod."
    )

    def with_claim(self, other: "NodePod") -> "NodePod":
        """Both entries of one cgroup together; the id of a container is not known where they contradict each other."""
        ids = {each.name: each.id for each in self.containers}
        for each in other.containers:
            ids[each.name] = each.id if ids.get(each.name, each.id) == each.id else None
        return NodePod(
            uid=self.uid,
            limits=list(dict.fromkeys([*self.limits, *other.limits])),
            containers=[PodContainer(name=name, id=identity) for name, identity in ids.items()],
        )


class NodeMember(Model):
    """Pods that are attached to a group, and what each of them may borrow (M8); amounts in bytes."""

    pods: list[str] = Field(json_schema_extra=_at_most(4096), description="UIDs that their cgroups bear.")
    borrow_limit: int | None = Field(None, ge=0)
    borrow_limit_on: LimitOn = LimitOn.MAPPED


class NodeGroup(Model):
    """A SharedMemoryGroup as compiled for a node; amounts in bytes."""

    name: str = Field(max_length=384, description="namespace/name of the resource.")
    uid: str = Field(max_length=64, description="UID of the resource behind it.")
    backing: Backing
    allowed: Path | None = Field(
        None,
        description="With a backing that has a path: the folder that the administrator allowed, below which nothing is followed out of it.",
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
        description="Nobody borrows anew; what was created goes with its last borrower, and then the report says Released.",
    )

    asked_hash: SkipJsonSchema[str | None] = Field(None, exclude=True)
    """The hash of the group as the operator asked for it, where the agent added pods that are gone; local to the node."""

    @cached_property
    def hash(self) -> str:
        """12 hex digits that change when anything of it does; the agent acknowledges them."""
        return self.asked_hash or _hash(self)

    def pods(self) -> frozenset[str]:
        """The UIDs of all attached pods."""
        return frozenset(uid for member in self.members for uid in member.pods)


def _hash(part: Model) -> str:
    return hashlib.sha256(json.dumps(part.to_wire(), sort_keys=True).encode()).hexdigest()[:12]


class UnsupportedLimit(NamedTuple):
    """A limit or group that this version does not understand: reported, neither ignored nor fatal."""

    name: str
    uid: str
    message: str


class NodePinConfigSpec(Model):
    """What the node shall hold; written only by the operator."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    mode: Mode = Field(
        Mode.ACTIVE, description="Release gives every process back what it had, and is acknowledged."
    )
    unknown_pods: int | None = Field(
        None, ge=0, description="Bytes that a pod not listed here may pin; absent leaves such pods alone."
    )
    limits: list[NodeLimit] = Field(default_factory=list, max_length=1024)
    pods: list[NodePod] = Field(default_factory=list, json_schema_extra=_at_most(4096))
    groups: list[NodeGroup] = Field(default_factory=list, max_length=256)

    @field_validator("pods")
    @classmethod
    def _each_once(cls, pods: list[NodePod]) -> list[NodePod]:
        """The limits of all entries with one UID hold for that cgroup (P13), so that no reader of the list lets the last one win."""
        found: dict[str, NodePod] = {}
        for pod in pods:
            found[pod.uid] = found[pod.uid].with_claim(pod) if pod.uid in found else pod
        return list(found.values())

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> tuple["NodePinConfigSpec", list[UnsupportedLimit]]:
        """Read a spec, setting aside each limit and group with a field or value that this version does not know.

        Pods keep the names of such limits, so that a pod held by one is never taken for free.

        Raises:
            pydantic.ValidationError: something other than a limit or a group is not understood.
        """
        limits, unsupported = _known(NodeLimit, raw.get("limits", []))
        groups, more = _known(NodeGroup, raw.get("groups", []))
        spec = cls.model_validate({**raw, "limits": [], "groups": []})
        return spec.model_copy(update={"limits": limits, "groups": groups}), [*unsupported, *more]


def _known(kind: type[_Part], entries: Iterable[object]) -> tuple[list[_Part], list[UnsupportedLimit]]:
    """Those of the entries that are understood, and why the others are not."""
    known: list[_Part] = []
    unsupported: list[UnsupportedLimit] = []
    for entry in entries:
        try:
            known.append(kind.model_validate(entry))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            fields = entry if isinstance(entry, Mapping) else {}
            unsupported.append(
                UnsupportedLimit(
                    str(fields.get("name", "")),
                    str(fields.get("uid", "")),
                    f"{where or 'entry'}: {first['msg']}",
                )
            )
    return known, unsupported
