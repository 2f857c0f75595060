"""The reasons of conditions and levels that more than one process writes or reads.

An agent writes them into the status of its NodePinConfig. The operator repeats them in the
conditions of limits and groups.
"""

from typing import Final

PENDING: Final = "Pending"
STARTING: Final = "ProcessStarting"
"""A process has just started, and may still be a process of the runtime."""
UNREAD: Final = "ThreadsUnread"
"""The privileges of a process's threads are not known yet."""
NO_PROCESSES: Final = "NoProcesses"
"""A pod's cgroups have no process.

If its containers run, their processes are elsewhere, and neither limited nor counted.
"""
ENDED: Final = "ProcessesEnded"
"""The last process of a pod has just ended: its containers ended, or the next process starts."""
POD_GONE: Final = "PodGone"
"""The pod has ended or is not in the API server any more, but some of its processes still run."""
SILENT: Final = "AgentSilent"
UNSUPPORTED: Final = "Unsupported"
NOT_REPORTED: Final = "NotReported"
NO_PODS: Final = "NoPods"
NOT_READABLE: Final = "NotReadable"
"""The processes of a pod, or an object of a group, cannot be read."""
LEVEL_TOO_LOW: Final = "LevelTooLow"
TRUNCATED: Final = "Truncated"
OVER_LIMIT: Final = "OverLimit"

AUDIT: Final = "Audit"
"""A limit is evaluated and denies nothing."""
SECCOMP_GATE: Final = "SeccompGate"
"""The seccomp gate enforces the limits exactly."""
RLIMIT_GATE: Final = "RlimitGate"
"""`RLIMIT_MEMLOCK` enforces the limits."""
GATE_LOST: Final = "GateLost"
"""The gate lost a pod: its pinning calls fail with `ENOSYS`."""
GATE_UNAVAILABLE: Final = "GateUnavailable"
"""A node cannot enforce limits."""

NOT_ALLOWED: Final = "NotAllowed"
"""A Namespace's annotation does not allow what a group names."""
NOT_THERE: Final = "NotThere"
NOT_LOOKED_AT: Final = "NotLookedAt"
NOT_MADE: Final = "NotMade"
NOT_REMOVED: Final = "NotRemoved"
ACCOUNTANT_SILENT: Final = "AccountantSilent"

RESTART_GATES: Final = "a restart gates it"
"""A message of a pod that runs ungated has these words if its next containers get the gate."""

PASSING: Final = frozenset({PENDING, STARTING, UNREAD})
"""Reasons that end by themselves soon; a message names all other reasons first."""
