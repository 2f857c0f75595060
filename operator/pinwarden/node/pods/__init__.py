"""The pods of this node, their cgroups and their processes, and what is to be held for them."""
