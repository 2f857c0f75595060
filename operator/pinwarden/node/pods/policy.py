"""What a configuration means on this node: which limits the agent can hold, and which of them hold for which subject.

A subject is a pod, known by the uid that its cgroup bears, or a directory that a limit's `cgroup_pattern` matches, known by its path below
the process hierarchy's root. A limit that cannot be held as it is written constrains nothing, is reported as unsupported, and is never
acknowledged (H1):

- `sources` that are a part of all: the kernel's counters do not tell them apart (SourceNotSeparable),
- counting OncePerPod: needs a ledger per page (NotSupported),
- scope Container with a pattern: directories have no container names (NotSupported),
- a pattern that leads out of the hierarchy or is none (InvalidPattern).

A pod that names such limits only is still a subject: it is reported, at Observe, and never taken for free.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pinwarden.api.nodepinconfig import (
    Mode,
    NodeLimit,
    NodePinConfigSpec,
    NodePod,
    PodContainer,
    UnsupportedLimit,
    UnsupportedReport,
)
from pinwarden.api.pinlimit import Counting, Enforcement, Scope, Source
from pinwarden.common.guard import shown
from pinwarden.common.patterns import parts_of
from pinwarden.node.state.config import LONGEST_MESSAGE

UNKNOWN_PODS = "unknownPods"
"""Name and uid of the constraint on pods that the configuration does not list."""

NOT_UNDERSTOOD = "NotUnderstood"
_UID = 64
_NAME, _DIGEST = 1024, 12


@dataclass(frozen=True, slots=True)
class SubjectPolicy:
    """What holds for one subject. `unsupported` is the reason why a limit that it names is not among `limits`, or empty.

    `gone`: the operator does not list the pod any more, and its cgroup is still there.
    Two with one `fingerprint` are held to the same limits, in every word of them.
    """

    limits: tuple[NodeLimit, ...]
    containers: tuple[PodContainer, ...] = ()
    unsupported: str = ""
    fingerprint: str = ""
    gone: bool = False

    @property
    def enforced(self) -> bool:
        """Whether anything shall be dealt to its processes; Audit touches nothing (P13)."""
        return any(limit.enforcement is Enforcement.ENFORCE for limit in self.limits)

    @property
    def by_container(self) -> tuple[NodeLimit, ...]:
        """Its limits of scope Container."""
        return tuple(limit for limit in self.limits if limit.scope is Scope.CONTAINER)


def reported_name(uid: str) -> str:
    """A subject's name as the report bears it: its own, or where that is too long or cannot be shown, a part of it and a digest.

    A pod's uid is always its own; a directory that a pattern matches may have any bytes in its name.
    """
    if len(uid) <= _NAME and uid.isprintable():
        return uid
    digest = hashlib.sha256(uid.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    return f"{shown(uid, _NAME - _DIGEST - 1)}~{digest}"


class NodePolicy:
    """One configuration, read once. `generation` is the NodePinConfig's; None for one that has none. `gone`: not listed any more."""

    def __init__(
        self,
        spec: NodePinConfigSpec,
        unsupported: Sequence[UnsupportedLimit],
        generation: int | None,
        gone: frozenset[str] = frozenset(),
    ) -> None:
        self._gone = gone
        self.release = spec.mode is Mode.RELEASE
        self.generation = generation
        refused = {limit.name: report for limit in spec.limits if (report := _refusal(limit))}
        self.limits = tuple(limit for limit in spec.limits if limit.name not in refused)
        self.unsupported = (
            *(
                UnsupportedReport(
                    uid=shown(one.uid, _UID),
                    reason=NOT_UNDERSTOOD,
                    message=shown(one.message, LONGEST_MESSAGE),
                )
                for one in unsupported
            ),
            *refused.values(),
        )
        self.groups = () if self.release else tuple(spec.groups)
        self._reasons = {name: report.reason for name, report in refused.items()}
        self._by_name = {limit.name: limit for limit in self.limits}
        self._pods = {pod.uid: pod for pod in spec.pods}
        self._fingerprints = {limit.name: _fingerprint(limit) for limit in self.limits}
        self._unlisted = None if spec.unknown_pods is None else _unlisted(spec.unknown_pods)

    @property
    def listed(self) -> Collection[str]:
        """The pods that the configuration names, governed and free ones, by uid; also those without a cgroup yet."""
        return self._pods.keys()

    def of_pod(self, uid: str) -> SubjectPolicy | None:
        """What holds for the pod; None when it is free."""
        pod = self._pods.get(uid)
        if pod is None:
            return self._unlisted
        return self._of_listed(pod) if pod.limits else None

    @property
    def patterns(self) -> Mapping[str, SubjectPolicy]:
        """What holds for each directory that a pattern matches, by pattern; several patterns may match one."""
        found: dict[str, list[NodeLimit]] = {}
        for limit in self.limits:
            if limit.cgroup_pattern is not None:
                found.setdefault(limit.cgroup_pattern.strip("/"), []).append(limit)
        return {pattern: SubjectPolicy(tuple(limits)) for pattern, limits in found.items()}

    def _of_listed(self, pod: NodePod) -> SubjectPolicy:
        missing = [name for name in pod.limits if name not in self._by_name]
        names = [name for name in dict.fromkeys(pod.limits) if name in self._by_name]
        return SubjectPolicy(
            limits=tuple(self._by_name[name] for name in names),
            containers=tuple(pod.containers),
            unsupported=self._reasons.get(missing[0], NOT_UNDERSTOOD) if missing else "",
            fingerprint=" ".join(self._fingerprints[name] for name in names),
            gone=pod.uid in self._gone,
        )


def _fingerprint(limit: NodeLimit) -> str:
    return hashlib.sha256(limit.model_dump_json().encode()).hexdigest()[:16]


def _unlisted(amount: int) -> SubjectPolicy:
    limit = NodeLimit(name=UNKNOWN_PODS, uid=UNKNOWN_PODS, scope=Scope.POD, limit=amount)
    return SubjectPolicy((limit,), fingerprint=_fingerprint(limit))


def _refusal(limit: NodeLimit) -> UnsupportedReport | None:
    def report(reason: str, message: str) -> UnsupportedReport:
        return UnsupportedReport(
            uid=limit.uid, reason=reason, message=shown(f"{limit.name}: {message}", LONGEST_MESSAGE)
        )

    if limit.sources and set(limit.sources) != set(Source):
        return report(
            "SourceNotSeparable", "sources: the kernel's counters per process do not tell them apart"
        )
    if limit.counting is Counting.ONCE_PER_POD:
        return report("NotSupported", "counting: OncePerPod needs a ledger per page")
    if limit.cgroup_pattern is None:
        return None
    if limit.scope is Scope.CONTAINER:
        return report("NotSupported", "scope: Container does not go with cgroupPattern")
    parts = parts_of(limit.cgroup_pattern)
    if not parts or any(part == ".." or "\0" in part or ("**" in part and part != "**") for part in parts):
        return report("InvalidPattern", "cgroupPattern: not a pattern of directories below the root")
    return None
