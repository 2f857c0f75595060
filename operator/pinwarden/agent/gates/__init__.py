"""What makes the kernel refuse a pin that a limit does not allow.

- `rlimit`: by each process's RLIMIT_MEMLOCK, in every pod (level Converge).
- `seccomp`: by answering the pinning calls of pods that have its profile (level Deny), in processes of its own.
"""
