"""PinLimits, ClusterPinLimits and SharedMemoryGroups as observed on the API server."""

from dataclasses import dataclass

from pydantic import ValidationError

from pinwarden.api.meta import GROUP, VERSION, Condition, describe_error
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitStatus
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup, SharedMemoryGroupStatus
from pinwarden.controller.client import Json

UserResource = PinLimit | ClusterPinLimit | SharedMemoryGroup
"""A resource that users write."""
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
    """A resource as observed on the API server.

    An unreadable `resource` or `status` is None, and `problem` says why the resource is unreadable.
    `version` orders the states of one object. `created` is the text of `creationTimestamp`;
    `deleting` is set for an object with a `deletionTimestamp`.
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
        """Return `name` or `namespace/name`, also of an unreadable resource."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def key(self) -> str:
        """Return the unique key: the full name, with the plural kind in front for a group."""
        return group_key(self.full_name) if self.kind is SharedMemoryGroup else self.full_name


def group_key(name: str) -> str:
    """Return the key of a group; unlike the key of a limit, it has two slashes."""
    return f"{SharedMemoryGroup.plural}/{name}"


def reference(observed: ObservedResource) -> tuple[str, Json]:
    """Return the path and an apply body; the UID in the body excludes a recreated object."""
    metadata = {"name": observed.name, "uid": observed.uid}
    space = ""
    if observed.namespace:
        metadata["namespace"] = observed.namespace
        space = f"namespaces/{observed.namespace}/"
    version = f"{GROUP}/{VERSION}"
    body = {"apiVersion": version, "kind": observed.kind.__name__, "metadata": metadata}
    return f"/apis/{version}/{space}{observed.kind.plural}/{observed.name}", body


def read(kind: type[UserResource], raw: Json) -> ObservedResource:
    """Read a resource; an invalid spec or status does not raise."""
    metadata = {key: raw["metadata"].get(key) for key in _METADATA}
    resource, problem = None, ""
    try:
        resource = kind.model_validate(
            {"metadata": metadata, "kind": raw["kind"], "spec": raw.get("spec")}
        )
    except ValidationError as error:
        problem = describe_error(error)
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


def conditions_of(status: Status | None) -> list[Condition]:
    """Return the conditions of a status, none if there is no status."""
    return status.conditions if status else []


def applied_to(status: Status | None, generation: int) -> str:
    """Return the reason if the status says Applied=True for this generation, else an empty text."""
    applied = ("Applied", "True", generation)
    for condition in conditions_of(status):
        if (condition.type, condition.status, condition.observed_generation) == applied:
            return condition.reason
    return ""


def essence(observed: ObservedResource) -> tuple[object, ...]:
    """Return the fields outside the status that a watch event may change."""
    return observed.generation, observed.deleting, observed.finalizers
