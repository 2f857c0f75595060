"""Who a listener belongs to: what the container runtime says of the container that it sends a seccomp descriptor of. Pure.

The message is the OCI runtime specification's container process state. containerd and CRI-O put what the kubelet told them into its
annotations: the pod's uid is the one that its cgroup bears, also of a static pod. A container of no pod is of the pod "", which no
configuration lists. The profile's own metadata comes with it, and tells its version; the first had none.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from pinwarden.node.gate.budgets import ContainerRef

_NAMES = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_UIDS = ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid")
_METADATA = re.compile(r"pinwarden-v(\d{1,4})")
_SANDBOXES = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")


@dataclass(frozen=True, slots=True)
class GatedContainer:
    """A container: its id, where its calls are made, and the id of its pod's sandbox, or empty.

    `message` is what the runtime said, and `version` that of its profile (`profiles`).
    """

    id: str
    ref: ContainerRef
    sandbox: str
    message: bytes
    version: int = 1

    @property
    def maps(self) -> bool:
        """Whether its profile sends calls that map shared memory."""
        return self.version >= 2


def parse(message: bytes) -> GatedContainer:
    """Reads the runtime's message. Raises ValueError, for people, when it does not say which container it is about."""
    try:
        whole: Any = json.loads(message)
        state: Any = whole["state"]
        version = _METADATA.fullmatch(str(whole.get("metadata") or ""))
        identity, annotations = state["id"], state.get("annotations") or {}
        found = [
            next((annotations[key] for key in keys if annotations.get(key)), "")
            for keys in (_UIDS, _NAMES, _SANDBOXES)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an OCI container process state: {error!r}") from error
    if not identity or not all(isinstance(each, str) for each in (identity, *found)):
        raise ValueError(
            "not an OCI container process state: no container's id, or annotations that are no text"
        )
    pod, name, sandbox = found
    return GatedContainer(
        identity, ContainerRef(pod, name), sandbox, message, int(version[1]) if version else 1
    )
