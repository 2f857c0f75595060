"""Objects with `management: Create`: created, and removed after the last use (M9, M10).

A tmpfs or hugetlbfs is mounted on the node below `PREFIX`, one for each group:

    /run/pinwarden-shared/<namespace>/<name>/shared/memory

Pods mount the folder `shared` inside the file system. Before the mount this folder does not exist.
So a pod waits for it, and never gets an empty folder of the node instead. The file `memory` and
the file system are as large as the capacity.

The kernel charges a page to the cgroup of the process with the fault. So a child in the group's
own cgroup, `pinwarden/<namespace>_<name>`, populates the file, and a writer is charged nothing
(M1, M9). A hole punched by a pod is filled in the next round. Until then the first pod with a fault
in the hole is charged.

This memory is outside of all pods. At most `--shared-memory` bytes are provisioned. An
administrator reserves them on the node (`systemReserved` of the kubelet), so the scheduler knows.
Existing objects count, including leftovers of deleted groups. Pages of hugetlbfs come from the
node's pool of huge pages and do not count.

Each round repeats all steps, and a repeated step changes nothing. So a crash in between
loses nothing. The object of a group stays if the group leaves the configuration undrained. A
System V segment is recognised by a record from before its creation. Another segment
with the key belongs to other software.
"""

import errno
import json
import mmap
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.api.reasons import NOT_MADE
from pinwarden.api.sharedmemorygroup import Owner
from pinwarden.common.text import exact, short
from pinwarden.node.accountant import provision_child as child
from pinwarden.node.accountant.provision_child import FileSystemSpec, SegmentRecord
from pinwarden.node.linux.cgroupfs import memory_charge, memory_hierarchy
from pinwarden.node.linux.mountinfo import read_mountinfo
from pinwarden.node.linux.namespaces import (
    NEWCGROUP,
    NEWIPC,
    NEWNS,
    enter_namespace,
    run_in_namespaces,
)
from pinwarden.node.state.statefile import UNUSABLE, read_whole, set_aside, write_atomically

PREFIX: Final = "/run/pinwarden-shared"
_PARENT: Final = "pinwarden"
_CAUSES: Final = {
    errno.ENOSPC: "there is no room for the object",
    errno.ENOMEM: "the node has no memory for the object",
    errno.EPERM: "the accountant lacks CAP_SYS_ADMIN, or a security module forbids it",
}
_Result = TypeVar("_Result")


class ProvisionError(Exception):
    """An object cannot be created: a reason in one word, and a message for users."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def mount_point(group: NodeGroup) -> str:
    """Return where the group's file system is mounted on the node."""
    return f"{PREFIX}/{group.name}"


class Provisioner:
    """Creates objects within a budget in bytes, on the node whose first process is `first`.

    Needs CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE.
    """

    def __init__(
        self, proc_root: Path, cgroup_root: Path, budget: int, segments: Path, first: int = 1
    ) -> None:
        """`segments` is a file in a tmpfs, which lives as long as segments do."""
        self._first = proc_root / str(first)
        self._memory = memory_hierarchy(cgroup_root)
        self._budget = budget
        self._segments = _SegmentRecords(segments)
        self._taken: dict[str, int] = {}

    def begin(self) -> None:
        """Begin a round: charge all existing objects to the budget. Raises OSError."""
        self._taken = {}
        for cgroup in (self._memory / _PARENT).glob("*/"):
            self._taken[cgroup.name] = memory_charge(cgroup) or 0
        for mount in read_mountinfo(self._first):
            if mount.type == "tmpfs" and mount.point.startswith(f"{PREFIX}/"):
                space = os.statvfs(f"{self._first}/root{mount.point}")
                name = mount.point.removeprefix(f"{PREFIX}/").replace("/", "_")
                self._taken[name] = max(self._taken.get(name, 0), space.f_blocks * space.f_frsize)

    def ensure(self, group: NodeGroup) -> None:
        """Create the group's object, or its missing parts. Raises ProvisionError."""
        size = group.capacity or 0
        page = _huge_page() if group.backing.hugetlbfs else mmap.PAGESIZE
        if size % page or not size:
            raise ProvisionError(
                "Invalid",
                f"capacity: {exact(size)} is not a whole number of pages of {short(page)}",
            )
        if not group.backing.hugetlbfs:
            self._take(_cgroup_name(group), size)
        owner = group.owner or Owner()
        try:
            cgroup = self._ensure_cgroup(group)
            if segment := group.backing.sysv_shm:
                record = self._segments.begin(group.uid)
                work = partial(
                    child.ensure_segment, segment.keys[0], size, owner, group.prefault, record
                )
                self._segments.created(group.uid, self._run_in(cgroup, NEWIPC, "ipc", work))
            else:
                spec = FileSystemSpec(mount_point(group), _kind(group), size, owner, group.prefault)
                self._run_in(cgroup, NEWNS, "mnt", partial(child.ensure_file_system, spec))
        except OSError as error:
            why = _CAUSES.get(error.errno or 0, error.strerror or str(error))
            raise ProvisionError(
                NOT_MADE, f"{error.filename}: {why}" if error.filename else why
            ) from error

    def release(self, group: NodeGroup, *, known: bool) -> None:
        """Remove the group's unused object; if it is not `known`, only half created parts.

        Raises OSError: EBUSY if a process uses the object, or if this is unknown.
        """
        if segment := group.backing.sysv_shm:
            record = self._segments.get(group.uid)
            if record is not None:
                remove = partial(child.remove_segment, segment.keys[0], group.capacity or 0, record)
                run_in_namespaces([(self._first / "ns/ipc", NEWIPC)], remove)
                self._segments.forget(group.uid)
        else:
            unmount = partial(child.remove_file_system, mount_point(group), _kind(group), known)
            if not run_in_namespaces([(self._first / "ns/mnt", NEWNS)], unmount):
                return
        with suppress(FileNotFoundError):
            self._cgroup(group).rmdir()
        with suppress(OSError):  # it has the cgroups of other groups
            self._cgroup(group).parent.rmdir()

    def charged(self, group: NodeGroup) -> int | None:
        """Return the bytes charged to the group's own cgroup; None if there is no cgroup."""
        return memory_charge(self._cgroup(group))

    def _take(self, name: str, size: int) -> None:
        """Charge an object to the budget; an existing object always fits. Raises ProvisionError."""
        have = self._taken.get(name, 0)
        left = self._budget - sum(self._taken.values()) + have
        if size > max(left, have):
            raise ProvisionError(
                "NoRoom",
                f"{short(size)} is requested, and {short(left)} is left of the "
                f"{short(self._budget)} that this node reserves (--shared-memory)",
            )
        self._taken[name] = size

    def _cgroup(self, group: NodeGroup) -> Path:
        return self._memory / _PARENT / _cgroup_name(group)

    def _ensure_cgroup(self, group: NodeGroup) -> Path:
        """Return the group's own cgroup, which has the memory controller. Raises OSError."""
        path = self._cgroup(group)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            for above in (self._memory, path.parent):
                control = above / "cgroup.subtree_control"
                if control.exists() and "memory" not in control.read_text().split():
                    control.write_text("+memory")
            path.mkdir(exist_ok=True)
        return path

    def _run_in(self, cgroup: Path, flag: int, kind: str, work: Callable[[], _Result]) -> _Result:
        def join() -> None:
            # a process cannot leave its own cgroup namespace by a move (CGRP_ROOT_NS_DELEGATE)
            enter_namespace(self._first / "ns/cgroup", NEWCGROUP)
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

        return run_in_namespaces([(self._first / "ns" / kind, flag)], work, before=join)


_RECORDS: Final = TypeAdapter(dict[str, tuple[int, int | None]])


class _SegmentRecords:
    """The records of created and half created segments, by group, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, uid: str) -> SegmentRecord | None:
        """Return a group's record, if there is one. Raises OSError."""
        return self._load().get(uid)

    def begin(self, uid: str) -> SegmentRecord:
        """Return a group's record, written before the segment is created. Raises OSError."""
        records = self._load()
        if uid not in records:
            records[uid] = SegmentRecord(int(time.time()))
            self._save(records)
        return records[uid]

    def created(self, uid: str, segment: int) -> None:
        """Record the segment's id. Raises OSError."""
        records = self._load()
        if records[uid].id != segment:
            records[uid] = records[uid]._replace(id=segment)
            self._save(records)

    def forget(self, uid: str) -> None:
        """Delete a group's record. Raises OSError."""
        records = self._load()
        if records.pop(uid, None) is not None:
            self._save(records)

    def _load(self) -> dict[str, SegmentRecord]:
        try:
            records = _RECORDS.validate_python(json.loads(read_whole(self._path)))
        except FileNotFoundError:
            return {}
        except UNUSABLE as error:
            set_aside(self._path, str(error))
            return {}
        return {uid: SegmentRecord(*record) for uid, record in records.items()}

    def _save(self, records: Mapping[str, SegmentRecord]) -> None:
        write_atomically(self._path, json.dumps(records).encode())


def _cgroup_name(group: NodeGroup) -> str:
    """Return the cgroup's name; Kubernetes names have no underscore."""
    return group.name.replace("/", "_")


def _kind(group: NodeGroup) -> str:
    return "tmpfs" if group.backing.tmpfs else "hugetlbfs"


def _huge_page() -> int:
    """Return the bytes of a huge page of the default size."""
    found = re.search(r"^Hugepagesize:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else mmap.PAGESIZE
