"""RLIMIT_MEMLOCK of a container from its first instruction. Pure.

A new process inherits the limits of the runtime, until the agent samples the process. The gate does
not count all pins exactly, and some containers run ungated. So the plugin sets the limits of a
container at its creation to the smallest limit on its pod. The limits are only lowered: only a
grant raises limits (P14).

The container runtime starts the plugin like other containers. So the plugin's own limits at its
start are the inherited limits of all. The kernel keeps no earlier limits, so an annotation of the
container names them.
"""

import re
from typing import Final

from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.nri.messages import Container, Pod
from pinwarden.node.state.nri_status import LoweredLimits

ANNOTATION: Final = "pinwarden.io/inherited-memlock"
_UNLIMITED: Final = "unlimited"
_AMOUNTS: Final = re.compile(rf"(\d{{1,20}}|{_UNLIMITED}):(\d{{1,20}}|{_UNLIMITED})", re.ASCII)


def lowered(inherited: Limits, amount: int) -> Limits | None:
    """Return the limits bounded by an amount in bytes, or None if they fit already."""
    limits = _bounded(inherited, Limits(amount, amount))
    return None if limits == inherited else limits


def annotation(inherited: Limits) -> str:
    """Return the value of the annotation: the soft and the hard limit."""
    return ":".join(_UNLIMITED if limit == UNLIMITED else str(limit) for limit in inherited)


def found(pod: Pod, container: Container, inherited: Limits) -> LoweredLimits | None:
    """Return the lowered limits of a container with an annotation, else None.

    A runtime can be configured to copy the annotations of pods into containers. Such an annotation
    is from the pod's author and has no meaning.
    """
    if ANNOTATION in pod.annotations:
        return None
    match = _AMOUNTS.fullmatch(container.annotations.get(ANNOTATION, ""))
    if match is None or container.memlock is None:
        return None
    soft, hard = (UNLIMITED if text == _UNLIMITED else int(text) for text in match.groups())
    return LoweredLimits(pod.uid, _bounded(inherited, Limits(soft, hard)), container.memlock)


def _bounded(limits: Limits, most: Limits) -> Limits:
    return Limits(min(limits.soft, most.soft), min(limits.hard, most.hard))
