"""Reads a configuration as the policy of this node: the enforceable limits, and their subjects.

A subject is a pod, identified by the uid in its cgroup's name, or a directory. A directory matches
the `cgroup_pattern` of a limit, and is identified by its path below the root of the process
hierarchy. Some limits cannot be enforced as written. They constrain no process, are reported as
unsupported, and are never acknowledged (H1):

- `sources` with only some of all sources: the kernel's counters do not separate them
  (SourceNotSeparable),
- counting OncePerPod: this needs a ledger per page (NotSupported),
- scope Container with a pattern: directories have no container names (NotSupported),
- an invalid pattern, or a pattern with `..` (InvalidPattern).

A pod with only such limits is still a subject, reported at level Observe.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
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
"""Name and uid of the constraint on pods outside the configuration."""

NOT_UNDERSTOOD = "NotUnderstood"
_UID = 64
_NAME, _DIGEST = 1024, 12


@dataclass(frozen=True, slots=True)
class SubjectPolicy:
    """The limits on one subject.

    `names` are its limits in the configuration. `unsupported` is the reason against a limit in
    `names` but not in `limits`, or empty. `gone`: the operator no longer lists the pod, and its
    cgroup still exists. Two policies with one `fingerprint` have equal limits.
    """

    limits: tuple[NodeLimit, ...]
    names: tuple[str, ...] = ()
    containers: tuple[PodContainer, ...] = ()
    unsupported: str = ""
    fingerprint: str = ""
    gone: bool = False

    @classmethod
    def of(cls, limits: Sequence[NodeLimit]) -> "SubjectPolicy":
        """Return the policy of a directory with these limits."""
        return cls(tuple(limits), names=tuple(limit.name for limit in limits))

    @property
    def enforced(self) -> bool:
        """Whether a limit is enforced. Audit changes no process (P13)."""
        return any(limit.enforcement is Enforcement.ENFORCE for limit in self.limits)

    @property
    def by_container(self) -> tuple[NodeLimit, ...]:
        """Its limits of scope Container."""
        return tuple(limit for limit in self.limits if limit.scope is Scope.CONTAINER)


def reported_name(uid: str) -> str:
    """Return the name of a subject in the report: its uid, if short and printable.

    Otherwise return the beginning of the uid and a digest: a directory name can have any bytes.
    """
    if len(uid) <= _NAME and uid.isprintable():
        return uid
    digest = hashlib.sha256(uid.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    return f"{shown(uid, _NAME - _DIGEST - 1)}~{digest}"


class NodePolicy:
    """The limits, subjects and groups of one configuration.

    `generation` is the generation of its NodePinConfig, None for local files. `gone` are the pods
    that the operator no longer lists.
    """

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
        rejected = {limit.name: report for limit in spec.limits if (report := _rejection(limit))}
        self.limits = tuple(limit for limit in spec.limits if limit.name not in rejected)
        self.unsupported = (
            *(
                UnsupportedReport(
                    uid=shown(limit.uid, _UID),
                    reason=NOT_UNDERSTOOD,
                    message=shown(limit.message, LONGEST_MESSAGE),
                )
                for limit in unsupported
            ),
            *rejected.values(),
        )
        self.groups = () if self.release else tuple(spec.groups)
        self._reasons = {name: report.reason for name, report in rejected.items()}
        self._by_name = {limit.name: limit for limit in self.limits}
        self._pods = {pod.uid: pod for pod in spec.pods}
        self._unlisted = None if spec.unknown_pods is None else _unlisted(spec.unknown_pods)

    @property
    def listed(self) -> Collection[str]:
        """The uids of all pods in the configuration, with or without a limit or a cgroup."""
        return self._pods.keys()

    def of_pod(self, uid: str) -> SubjectPolicy | None:
        """Return the policy of a pod, None if no limit applies to it."""
        pod = self._pods.get(uid)
        if pod is None:
            return self._unlisted
        return self._of_listed(pod) if pod.limits else None

    @property
    def patterns(self) -> Mapping[str, SubjectPolicy]:
        """The policy of each pattern. Several patterns can match the same directory."""
        by_pattern: dict[str, list[NodeLimit]] = {}
        for limit in self.limits:
            if limit.cgroup_pattern is not None:
                by_pattern.setdefault(limit.cgroup_pattern.strip("/"), []).append(limit)
        return {pattern: SubjectPolicy.of(limits) for pattern, limits in by_pattern.items()}

    def _of_listed(self, pod: NodePod) -> SubjectPolicy:
        missing = [name for name in pod.limits if name not in self._by_name]
        limits = tuple(
            self._by_name[name] for name in dict.fromkeys(pod.limits) if name in self._by_name
        )
        return SubjectPolicy(
            limits=limits,
            names=tuple(pod.limits),
            containers=tuple(pod.containers),
            unsupported=self._reasons.get(missing[0], NOT_UNDERSTOOD) if missing else "",
            fingerprint=_fingerprint(limits),
            gone=pod.uid in self._gone,
        )


def _fingerprint(limits: Iterable[NodeLimit]) -> str:
    return " ".join(limit.hash for limit in limits)


def _unlisted(amount: int) -> SubjectPolicy:
    limit = NodeLimit(name=UNKNOWN_PODS, uid=UNKNOWN_PODS, scope=Scope.POD, limit=amount)
    return SubjectPolicy((limit,), names=(limit.name,), fingerprint=_fingerprint([limit]))


def _rejection(limit: NodeLimit) -> UnsupportedReport | None:
    def report(reason: str, message: str) -> UnsupportedReport:
        return UnsupportedReport(
            uid=limit.uid, reason=reason, message=shown(f"{limit.name}: {message}", LONGEST_MESSAGE)
        )

    if limit.sources and set(limit.sources) != set(Source):
        return report(
            "SourceNotSeparable",
            "sources: the kernel's counters per process do not separate sources",
        )
    if limit.counting is Counting.ONCE_PER_POD:
        return report("NotSupported", "counting: OncePerPod needs a ledger per page")
    if limit.cgroup_pattern is None:
        return None
    if limit.scope is Scope.CONTAINER:
        return report("NotSupported", "scope: Container cannot be combined with cgroupPattern")
    parts = parts_of(limit.cgroup_pattern)
    if not parts or any(
        part == ".." or "\0" in part or ("**" in part and part != "**") for part in parts
    ):
        return report(
            "InvalidPattern", "cgroupPattern: not a pattern for directories below the root"
        )
    return None
