"""What the rules read of the cluster: a few fields each, so that 150,000 pods fit in memory.

Most pods are copies of each other, so `Pod.of` shares what copies have in common: label maps, container names, names of namespaces and
nodes. Sharing is by a bounded cache of recently seen values: nothing leaks when label values never come back (Jobs), and two equal maps
that were not shared are still equal.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

NAME_LABEL = "kubernetes.io/metadata.name"
WINDOWS = "windows"
_OS_LABEL = "kubernetes.io/os"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; the API server puts its name among its labels (`NAME_LABEL`).

    `allowed` is the text of the annotation `plan.allowed.ANNOTATION`; `terminating` says that it is being deleted.
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
        """Whether it runs Windows, where no agent can: no limit and no group reaches its pods."""
        return self.labels.get(_OS_LABEL) == WINDOWS


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod bound to a node.

    `uid` is the API object's; `cgroup_uid` is the UID that its cgroup bears: the pod's own, or the config hash of a static pod. Another
    pod of the node may name the same hash (`contested`): then nobody knows whose that cgroup is.
    `containers` maps each container's name to its id, None until the kubelet reported one. `node` is empty until the pod is bound.
    `terminal` says that its phase is Succeeded or Failed: all its containers have ended for good, and the rules see it as gone.
    `windows` says that it names Windows as its system, and the rules see it as gone too; of one that names none, the node tells
    (`Node.windows`).
    Whether any container ever started is what the ids say (`started`). `running`: the kubelet last said that a container runs, an init
    container too. `gone`: the API server has it no more, or as one that ended, and processes of it go on. Callers change none of the maps.
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
        """The UIDs that only a cgroup of this pod can bear: its own always, and its hash while no other pod of the node names that."""
        if self.contested or self.cgroup_uid == self.uid:
            return (self.uid,)
        return self.cgroup_uid, self.uid

    @property
    def started(self) -> bool:
        """Whether the kubelet reported the id of a container, which it does once one was created."""
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
        """A pod that shares with its like what they have in common; equal to one made without sharing."""
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
