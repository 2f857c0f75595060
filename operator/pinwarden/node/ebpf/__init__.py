"""The eBPF ledger: programs in the kernel count pinned memory, by cgroup and source.

`loader` loads the programs of the folder bpf/, and `accounts` reads their counts. `selftest` does
each of the `operations`, and finds out which ones this kernel counts.
"""
