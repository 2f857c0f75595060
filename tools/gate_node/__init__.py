"""This machine as a node with a holder, a gate and gated processes, for tests and benchmarks."""
