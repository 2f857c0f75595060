"""What the rules read of the cluster: a few fields each, so that 150,000 pods fit in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; the API server puts its name among its labels (`NAME_LABEL`)."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """A node."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod bound to a node.

    `cgroup_uid` is the UID that its cgroup bears: the pod's own, or the config hash of a static pod. `containers` maps each
    container's name to its id, None until the kubelet reported one.
    """

    namespace: str
    name: str
    cgroup_uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: Mapping[str, str | None] = field(default_factory=dict)
