"""The eBPF ledger: programs in the kernel that count pinned memory, by cgroup and source.

`loader` loads programs, `accounts` reads what they count, `selftest` finds out what they count on
this kernel. The programs are in the folder bpf/ of the repository.
"""
