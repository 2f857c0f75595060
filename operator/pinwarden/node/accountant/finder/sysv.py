"""System V segments by their keys, in the IPC namespace of the node or of each member pod."""

from pathlib import Path

from pinwarden.api.sharedmemorygroup import IpcNamespace
from pinwarden.node.accountant.finder.processes import one_per_namespace
from pinwarden.node.accountant.finder.result import GroupObjects, Pids
from pinwarden.node.linux import sysvshm
from pinwarden.node.linux.namespaces import ipc_namespace
from pinwarden.node.linux.procfs import GONE
from pinwarden.node.shm.objects import ObjectId


def find(
    objects: GroupObjects,
    proc_root: Path,
    first: Path,
    keys: tuple[int, int],
    namespace: IpcNamespace,
    pids: Pids,
) -> None:
    """Add the segments with keys in this range. `first` is the node's first process.

    Raises OSError.
    """
    node = ipc_namespace(first)
    processes = {node: first}
    if namespace is IpcNamespace.POD:
        members = [proc_root / str(pid) for pid in one_per_namespace(proc_root, "ipc", pids)]
        processes = {ipc_namespace(process): process for process in members}
        processes.pop(node, None)
    for space, process in processes.items():
        if space is None:
            continue
        try:
            segments = sysvshm.segments_of(process)
        except GONE:
            continue
        for segment in segments:
            if keys[0] <= segment.key <= keys[1]:
                identity = ObjectId(sysvshm.device(), segment.id, space)
                objects.add(identity, segment.used)
                objects.sizes[identity] = segment.size
