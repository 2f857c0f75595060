"""The few used fields of pods, nodes and namespaces, so that 150,000 pods fit in memory.

Many pods are copies of each other. `Pod.of` shares their label maps, container names, and names of
namespaces and nodes. The caches of shared values are bounded, so the label values of Jobs leak
nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

NAME_LABEL = "kubernetes.io/metadata.name"
WINDOWS = "windows"
_OS_LABEL = "kubernetes.io/os"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; the API server adds its name to its labels (`NAME_LABEL`).

    `allowed` is the text of the annotation `group_allowlist.ANNOTATION`. `terminating`: the
    namespace is being deleted.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    allowed: str = ""
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A node."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def windows(self) -> bool:
        """Whether the node runs Windows, where no agent, limit or group applies."""
        return self.labels.get(_OS_LABEL) == WINDOWS


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod bound to a node.

    `uid` is the UID of the API object. `cgroup_uid` is the UID in the name of its cgroup: the pod's
    own UID, or the hash of a static pod's configuration. `contested`: another pod of the node names
    the same hash, so the owner of the cgroup is unknown.

    `containers` maps the name of each container to its id, None until the kubelet reports an id.
    `node` is empty until the pod is scheduled. `terminal`: the phase is Succeeded or Failed, so all
    containers have ended for good. `windows`: the pod names Windows as its operating system. The
    rules ignore terminal pods and pods for Windows.

    `running`: the kubelet last reported a running container, also an init container. `gone`: the
    pod has ended or is not in the API server any more, but some of its processes still run. Callers
    must not change the maps.
    """

    namespace: str
    name: str
    uid: str
    cgroup_uid: str
    node: str
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: Mapping[str, str | None] = field(default_factory=dict)
    terminal: bool = False
    windows: bool = False
    contested: bool = False
    running: bool = False
    gone: bool = False

    @property
    def cgroup_uids(self) -> Collection[str]:
        """The UIDs of the pod's possible cgroups: its own, and its hash unless contested."""
        if self.contested or self.cgroup_uid == self.uid:
            return (self.uid,)
        return self.cgroup_uid, self.uid

    @property
    def started(self) -> bool:
        """Whether the kubelet reported the id of a container, as after its creation."""
        return any(self.containers.values())

    @classmethod
    def of(
        cls,
        *,
        namespace: str,
        name: str,
        uid: str,
        cgroup_uid: str,
        node: str,
        labels: Mapping[str, str],
        containers: Mapping[str, str | None],
        terminal: bool,
        windows: bool = False,
        running: bool = False,
    ) -> "Pod":
        """Return a pod with values shared with similar pods; equal to a pod without sharing."""
        return cls(
            namespace=_string(namespace),
            name=name,
            uid=uid,
            cgroup_uid=uid if cgroup_uid == uid else cgroup_uid,
            node=_string(node),
            labels=_labels(tuple(sorted(labels.items()))),
            containers={_string(key): value for key, value in containers.items()},
            terminal=terminal,
            windows=windows,
            running=running,
        )


@lru_cache(maxsize=65536)
def _string(value: str) -> str:
    return value


@lru_cache(maxsize=32768)
def _labels(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {_string(key): _string(value) for key, value in items}
