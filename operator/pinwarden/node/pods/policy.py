"""Reads a configuration as the policy of this node: the limits it can enforce, and the subjects
they apply to.

A subject is a pod, known by the uid in its cgroup's name, or a directory that a limit's
`cgroup_pattern` matches, known by its path below the root of the process hierarchy. A limit that
cannot be enforced as it is written constrains nothing, is reported as unsupported, and is never
acknowledged (H1):

- `sources` that are only some of all: the kernel's counters do not separate them
  (SourceNotSeparable),
- counting OncePerPod: this needs a ledger per page (NotSupported),
- scope Container with a pattern: directories have no container names (NotSupported),
- a pattern that is invalid or leads out of the hierarchy (InvalidPattern).

A pod that has only such limits is still a subject, reported at level Observe.
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
"""Name and uid of the constraint on pods that the configuration does not list."""

NOT_UNDERSTOOD = "NotUnderstood"
_UID = 64
_NAME, _DIGEST = 1024, 12


@dataclass(frozen=True, slots=True)
class SubjectPolicy:
    """The limits on one subject.

    `names` are its limits in the configuration. `unsupported` is the reason why one of them is not
    in `limits`, or empty. `gone`: the operator does not list the pod any more, and its cgroup still
    exists. Two policies with one `fingerprint` have equal limits.
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
    """Return the name of a subject in the report: its uid if that is short and printable.

    Otherwise return the beginning of the uid and a digest: a directory name can have any bytes.
    """
    if len(uid) <= _NAME and uid.isprintable():
        return uid
    digest = hashlib.sha256(uid.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    return f"{shown(uid, _NAME - _DIGEST - 1)}~{digest}"


class NodePolicy:
    """One configuration. `generation` is that of its NodePinConfig, None for local files.

    `gone` are the pods that the operator does not list any more.
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
        refused = {limit.name: report for limit in spec.limits if (report := _refusal(limit))}
        self.limits = tuple(limit for limit in spec.limits if limit.name not in refused)
        self.unsupported = (
            *(
                UnsupportedReport(
                    uid=shown(limit.uid, _UID),
                    reason=NOT_UNDERSTOOD,
                    message=shown(limit.message, LONGEST_MESSAGE),
                )
                for limit in unsupported
            ),
            *refused.values(),
        )
        self.groups = () if self.release else tuple(spec.groups)
        self._reasons = {name: report.reason for name, report in refused.items()}
        self._by_name = {limit.name: limit for limit in self.limits}
        self._pods = {pod.uid: pod for pod in spec.pods}
        self._unlisted = None if spec.unknown_pods is None else _unlisted(spec.unknown_pods)

    @property
    def listed(self) -> Collection[str]:
        """The uids of all pods in the configuration, including free pods and pods without a cgroup."""
        return self._pods.keys()

    def of_pod(self, uid: str) -> SubjectPolicy | None:
        """Return the policy of a pod, None if no limit applies to it."""
        pod = self._pods.get(uid)
        if pod is None:
            return self._unlisted
        return self._of_listed(pod) if pod.limits else None

    @property
    def patterns(self) -> Mapping[str, SubjectPolicy]:
        """The policy of the directories that a pattern matches, by pattern.

        Several patterns can match one.
        """
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


def _refusal(limit: NodeLimit) -> UnsupportedReport | None:
    def report(reason: str, message: str) -> UnsupportedReport:
        return UnsupportedReport(
            uid=limit.uid, reason=reason, message=shown(f"{limit.name}: {message}", LONGEST_MESSAGE)
        )

    if limit.sources and set(limit.sources) != set(Source):
        return report(
            "SourceNotSeparable",
            "sources: the kernel's counters per process do not tell them apart",
        )
    if limit.counting is Counting.ONCE_PER_POD:
        return report("NotSupported", "counting: OncePerPod needs a ledger per page")
    if limit.cgroup_pattern is None:
        return None
    if limit.scope is Scope.CONTAINER:
        return report("NotSupported", "scope: Container does not go with cgroupPattern")
    parts = parts_of(limit.cgroup_pattern)
    if not parts or any(
        part == ".." or "\0" in part or ("**" in part and part != "**") for part in parts
    ):
        return report(
            "InvalidPattern", "cgroupPattern: not a pattern of directories below the root"
        )
    return None
