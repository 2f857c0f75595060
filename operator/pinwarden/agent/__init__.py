"""The node agent: finds the cgroups of pods, reads what their processes have pinned, and holds the limits of the node.

`cgroups` and `ledger` read the kernel and decide nothing; `deal` decides and reads nothing.
"""
