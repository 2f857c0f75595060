"""PinLimits, ClusterPinLimits and SharedMemoryGroups as the operator observes them: read, told apart, referred to."""

from dataclasses import dataclass

from pydantic import ValidationError

from pinwarden.api.meta import GROUP, VERSION, Condition
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitStatus
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup, SharedMemoryGroupStatus
from pinwarden.controller.client import Json

UserResource = PinLimit | ClusterPinLimit | SharedMemoryGroup
"""A resource in which people say what they want."""
Status = PinLimitStatus | SharedMemoryGroupStatus
KINDS: tuple[type[UserResource], ...] = (PinLimit, ClusterPinLimit, SharedMemoryGroup)
_STATUSES: dict[type[UserResource], type[Status]] = {
    PinLimit: PinLimitStatus,
    ClusterPinLimit: PinLimitStatus,
    SharedMemoryGroup: SharedMemoryGroupStatus,
}
_METADATA = ("name", "namespace", "uid", "generation", "resourceVersion")


@dataclass(frozen=True, slots=True)
class ObservedResource:
    """A resource as the API server has it; `resource` is None when it cannot be read, and `problem` says why.

    `version` orders the states of one object. A status that cannot be read is None, as if there were none. `created` is the text of its
    creationTimestamp, `deleting` says that it has a deletionTimestamp.
    """

    kind: type[UserResource]
    name: str
    namespace: str | None
    uid: str
    generation: int
    version: int
    resource: UserResource | None
    problem: str
    status: Status | None
    created: str = ""
    deleting: bool = False
    finalizers: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """`limit_name` or `Group.name`, also of one that cannot be read."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def key(self) -> str:
        """Tells all of them apart: the full name of a limit, and that of a group behind its kind."""
        return group_key(self.full_name) if self.kind is SharedMemoryGroup else self.full_name


def group_key(name: str) -> str:
    """The key of the group with this `namespace/name`; a limit's has at most one slash."""
    return f"{SharedMemoryGroup.plural}/{name}"


def reference(observed: ObservedResource) -> tuple[str, Json]:
    """The path of a resource, and the body by which this very one is applied to, and no other of its name."""
    metadata = {"name": observed.name, "uid": observed.uid}
    space = ""
    if observed.namespace:
        metadata["namespace"] = observed.namespace
        space = f"namespaces/{observed.namespace}/"
    version = f"{GROUP}/{VERSION}"
    body = {"apiVersion": version, "kind": observed.kind.__name__, "metadata": metadata}
    return f"/apis/{version}/{space}{observed.kind.plural}/{observed.name}", body


def read(kind: type[UserResource], raw: Json) -> ObservedResource:
    """Take what is used of a resource; never fails on what stands in its spec or status."""
    metadata = {key: raw["metadata"].get(key) for key in _METADATA}
    resource, problem = None, ""
    try:
        resource = kind.model_validate({"metadata": metadata, "kind": raw["kind"], "spec": raw.get("spec")})
    except ValidationError as error:
        problem = _first(error)
    return ObservedResource(
        kind=kind,
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata["generation"] or 0,
        version=int(metadata["resourceVersion"]),
        resource=resource,
        problem=problem,
        status=_status(kind, raw.get("status")),
        created=raw["metadata"].get("creationTimestamp") or "",
        deleting=bool(raw["metadata"].get("deletionTimestamp")),
        finalizers=tuple(raw["metadata"].get("finalizers") or ()),
    )


def _status(kind: type[UserResource], raw: object) -> Status | None:
    try:
        return _STATUSES[kind].model_validate(raw) if raw else None
    except ValidationError:
        return None


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, by field."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def conditions_of(status: Status | None) -> list[Condition]:
    """The conditions of a status, none where there is no status."""
    return status.conditions if status else []


def applied_to(status: Status | None, generation: int) -> str:
    """The reason of Applied=True for this generation; empty where that is not so."""
    conditions = (each for each in conditions_of(status) if (each.type, each.status) == ("Applied", "True"))
    return next((each.reason for each in conditions if each.observed_generation == generation), "")


def essence(observed: ObservedResource) -> tuple[object, ...]:
    """What of a resource is news beside its status."""
    return observed.generation, observed.deleting, observed.finalizers
