"""The pods of this node: their cgroups, their processes, and the limits on them."""
