"""The container of a listener, from the message of the container runtime. Pure.

The message is the container process state of the OCI runtime specification. containerd and CRI-O
copy the kubelet's data into its annotations. The pod's UID is the UID in the name of its cgroup,
also for a static pod. A container outside Kubernetes belongs to the pod "", which no configuration
lists. The message also carries the metadata of the seccomp profile, which names its version. The
first version had no metadata.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

_NAMES = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_UIDS = ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid")
_METADATA = re.compile(r"pinwarden-v(\d{1,4})")
_SANDBOXES = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")


class ContainerRef(NamedTuple):
    """The UID of a pod and the name of one of its containers."""

    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class GatedContainer:
    """A container with a listener: its id, and the id of its pod's sandbox or "".

    `message` is the runtime's message, and `version` the version of its profile (`profiles`).
    """

    id: str
    ref: ContainerRef
    sandbox: str
    message: bytes
    version: int = 1

    @property
    def maps(self) -> bool:
        """Whether its profile sends mappings of shared memory."""
        return self.version >= 2


def parse(message: bytes) -> GatedContainer:
    """Return the container of a runtime's message.

    Raises ValueError with a readable text if the message names no container.
    """
    try:
        whole: Any = json.loads(message)
        state: Any = whole["state"]
        version = _METADATA.fullmatch(str(whole.get("metadata") or ""))
        container_id, annotations = state["id"], state.get("annotations") or {}
        values = [
            next((annotations[key] for key in keys if annotations.get(key)), "")
            for keys in (_UIDS, _NAMES, _SANDBOXES)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an OCI container process state: {error!r}") from error
    if not container_id or not all(isinstance(value, str) for value in (container_id, *values)):
        raise ValueError(
            "not an OCI container process state: no container id, or annotations that are not text"
        )
    pod, name, sandbox = values
    return GatedContainer(
        container_id, ContainerRef(pod, name), sandbox, message, int(version[1]) if version else 1
    )
