"""What makes the kernel refuse a pin that a limit does not allow. `rlimit` does it with each process's RLIMIT_MEMLOCK."""
