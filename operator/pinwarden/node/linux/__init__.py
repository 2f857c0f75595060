"""The kernel's interfaces. No module here knows pods or limits, or needs a third-party library.

`libc`, `syscalls`; processes: `procfs`, `prlimit`, `namespaces`, `mountinfo`, `cgroupfs`; calls:
`seccomp_notify`, `openat2`; memory: `pagemap`, `pagecache`, `kpagecgroup`, `vmstat`, `sysvshm`,
`intervals`.
"""
