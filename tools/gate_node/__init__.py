"""This machine as a node with a seccomp gate: real holder, gate, cgroups and filtered processes, for tests and benchmarks."""
