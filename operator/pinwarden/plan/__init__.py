"""The rules, as pure functions over values: no clock, no network, no files.

- `selectors`: which objects a label selector selects.
- `world`: the few fields of pods, nodes and namespaces that the rules read.
- `compile`: limits and pods in, the spec of one node's NodePinConfig out.
"""
