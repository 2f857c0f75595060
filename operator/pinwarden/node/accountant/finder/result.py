"""The result of a search: the objects of a group, or the reason why there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pinwarden.api.reasons import NOT_READABLE, NOT_THERE
from pinwarden.node.shm.objects import ObjectId, ObjectSet

MOST_OBJECTS = 1024

Pids = Mapping[str, Sequence[int]]
"""The processes of each member pod, by the pod's UID."""


class ObjectsNotFoundError(Exception):
    """A group has no objects now: a reason in one word, and a message for users."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class GroupObjects:
    """The objects of a group now, with at most `room` of them.

    `objects` has the bytes of each object, `sizes` the sizes of System V segments. A
    device is a whole file system, and `filesystem_bytes` are its bytes, None if unknown.
    `dmabuf_devices` are the devices of dma-bufs.

    `truncated`: there may be more objects, so the charge is a lower bound (H2). `cause` says why
    some objects may be unknown, and is empty if there are merely too many. `not_regular` is a
    matching name of anything else.
    """

    room: int = MOST_OBJECTS
    devices: set[int] = field(default_factory=set)
    objects: dict[ObjectId, int] = field(default_factory=dict)
    sizes: dict[ObjectId, int] = field(default_factory=dict)
    filesystem_bytes: int | None = None
    truncated: bool = False
    cause: str = ""
    dmabuf_devices: set[int] = field(default_factory=set)
    not_regular: str = ""

    @property
    def object_set(self) -> ObjectSet:
        """The objects as /proc/PID/maps shows them."""
        return ObjectSet(
            frozenset(self.devices), frozenset(self.objects), frozenset(self.sizes.items())
        )

    @property
    def count(self) -> int:
        """The number of objects; a file system counts as one."""
        return len(self.devices) + len(self.objects)

    @property
    def charge(self) -> int | None:
        """The bytes of all objects (M3); None if a file system does not show them."""
        if self.devices:
            return self.filesystem_bytes
        return sum(self.objects.values())

    def add(self, identity: ObjectId, used: int) -> None:
        """Add an object with its bytes, unless there is no room."""
        if len(self.objects) < self.room or identity in self.objects:
            self.objects[identity] = used
        else:
            self.truncated = True

    def miss(self, cause: str) -> None:
        """Note that some objects may be unknown."""
        self.truncated, self.cause = True, cause

    def check(self) -> None:
        """Raise ObjectsNotFoundError if there are no objects."""
        if self.count:
            return
        if self.truncated:
            why = self.cause or "there are more objects than can be accounted"
            raise ObjectsNotFoundError(NOT_READABLE, f"no such object is known: {why}")
        if self.not_regular:
            raise ObjectsNotFoundError("WrongType", f"{self.not_regular} is not a regular file")
        raise ObjectsNotFoundError(NOT_THERE, "no such object exists now")
