"""The backing of a SharedMemoryGroup: the kinds of shared memory objects, and how each is named."""

import re
from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from pinwarden.api.cel import cel
from pinwarden.api.meta import Model

Path = Annotated[
    str,
    StringConstraints(
        max_length=1024,
        pattern=r"^(/(\.{0,2}[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*|\.{3}[^/\x00-\x1f\x7f]*))+$",
    ),
]
"""An absolute path without `.`, `..`, empty parts, a trailing slash, or control characters."""
ObjectName = Annotated[
    str, StringConstraints(min_length=1, max_length=249, pattern=r"^[^/\x00-\x1f\x7f]+$")
]


MAX_KEY: Final = 2**32 - 1
EVERY_KEY: Final = "*"
_KEY: Final = r"(?:0[xX]0*[1-9a-fA-F][0-9a-fA-F]{0,7}|0*[1-9][0-9]{0,9})"
_KEYS: Final = re.compile(rf"({_KEY})(?:-({_KEY}))?")
SysvKey = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-kubernetes-validations": [
                cel(
                    f"type(self) == int ? self >= 1 && self <= {MAX_KEY} : self == '*' || "
                    f"self.matches(r'^{_KEY}(-{_KEY})?$')",
                    f"must be a decimal or hexadecimal key from 1 to {MAX_KEY:#x}, "
                    "two keys with '-' between them, or '*'",
                )
            ],
        }
    ),
]


def key_range(text: str) -> tuple[int, int]:
    """Return the lowest and the highest key of a key or a range, decimal or hexadecimal.

    Raises:
        ValueError: the text is neither a key nor a range.
    """
    found = _KEYS.fullmatch(text)
    if found is None:
        raise ValueError("must be a key, or two keys with '-' between them, decimal or hexadecimal")
    low = _number(found[1])
    high = _number(found[2]) if found[2] else low
    if not 1 <= low <= high <= MAX_KEY:
        raise ValueError(f"keys go from 1 to {MAX_KEY:#x}, the lower one first")
    return low, high


def _number(text: str) -> int:
    return int(text, 16 if text[:2].lower() == "0x" else 10)


class IpcNamespace(StrEnum):
    """The IPC namespace of an object: each member pod's, or the node's."""

    POD = "Pod"
    HOST = "Host"


class MountBacking(Model):
    """A whole mounted file system."""

    path: Path | None = Field(
        None,
        description="Mount point on the node; absent with management: Create, where pinwarden "
        "chooses the place.",
    )


class PosixShmBacking(Model):
    """POSIX shared memory (shm_open(3))."""

    name: ObjectName = Field(
        description="Name without its leading slash; * and ? match any characters, and the name "
        "may match several objects."
    )
    ipc_namespace: IpcNamespace = Field(
        IpcNamespace.POD,
        description="Pod: the /dev/shm of each member pod. Host: the /dev/shm of the node.",
    )


class SysvShmBacking(Model):
    """System V shared memory segments (shmget(2))."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.ipcNamespace == 'Pod' || string(self.key) != '*'",
                    "key '*' needs ipcNamespace: Pod; for segments of the node, set a key or a "
                    "range",
                    ".key",
                )
            ]
        }
    )

    key: SysvKey = Field(
        description="Key as a number, or as a text: a key as ipcs prints it (0x0052e2c1), a range "
        "(0x5000-0x5fff), or '*' for all segments of the pod, also those with IPC_PRIVATE, which "
        "have no key."
    )
    ipc_namespace: IpcNamespace = Field(
        IpcNamespace.POD,
        description="Pod: the segments of each member pod. Host: the segments of the node.",
    )

    @property
    def keys(self) -> tuple[int, int]:
        """The lowest and the highest key. Raises ValueError if the text is no key."""
        return (0, MAX_KEY) if self.key == EVERY_KEY else key_range(str(self.key))


class FileBacking(Model):
    """Files of any file system: their pages in the page cache."""

    path: Path = Field(
        description="Path on the node; * and ? in its last part match any characters, and the path "
        "may match several files."
    )


class MemfdBacking(Model):
    """Anonymous files (memfd_create(2)) that processes of member pods have open or mapped."""

    name: ObjectName = Field(
        description="Name from the program; * and ? match any characters, and the name may match "
        "several files."
    )


class DmabufBacking(Model):
    """DMA buffers, open or mapped in processes of member pods."""

    exporter: ObjectName = Field(
        description="Name of the exporting driver (exp_name), such as udmabuf."
    )


class Backing(Model):
    """The object of the group: exactly one kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "[has(self.tmpfs), has(self.posixShm), has(self.sysvShm), has(self.hugetlbfs), "
                    "has(self.file), has(self.memfd), has(self.dmabuf)]"
                    ".filter(one, one).size() == 1",
                    "set exactly one of tmpfs, posixShm, sysvShm, hugetlbfs, file, memfd, dmabuf",
                )
            ]
        }
    )

    tmpfs: MountBacking | None = Field(None, description="A tmpfs.")
    posix_shm: PosixShmBacking | None = None
    sysv_shm: SysvShmBacking | None = None
    hugetlbfs: MountBacking | None = Field(
        None, description="A hugetlbfs, with the node's default page size."
    )
    file: FileBacking | None = None
    memfd: MemfdBacking | None = None
    dmabuf: DmabufBacking | None = None

    @property
    def kind(self) -> str:
        """The name of the kind in a manifest."""
        return next(iter(self.to_wire()), "")
