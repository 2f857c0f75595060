"""The reasons of conditions and levels that more than one process writes or reads.

An agent reports them in the status of its NodePinConfig, and the operator repeats them in the conditions of limits and groups.
"""

PENDING = "Pending"
STARTING = "ProcessStarting"
"""A process began just now, and may be the runtime's own still."""
UNREAD = "ThreadsUnread"
"""It is not known yet what each thread of a process may do."""
NO_PROCESSES = "NoProcesses"
"""No process is in the cgroups of a pod: where its containers run, they run elsewhere, and nobody holds or counts them."""
ENDED = "ProcessesEnded"
"""The last process of a pod ended just now: its containers have ended, or the next one starts."""
POD_GONE = "PodGone"
"""A pod that the API server has no more, or as one that ended, while processes of it go on."""
SILENT = "AgentSilent"
UNSUPPORTED = "Unsupported"
NOT_REPORTED = "NotReported"
NO_PODS = "NoPods"
NOT_READABLE = "NotReadable"
"""The processes of a pod cannot be read, so that it is not known whether it has any."""
LEVEL_TOO_LOW = "LevelTooLow"
TRUNCATED = "Truncated"

PASSING = frozenset({PENDING, STARTING, UNREAD})
"""Reasons that a moment mends: any other is named first."""
