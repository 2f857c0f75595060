"""The rules, as pure functions over values: no clock, no network, no files.

- `types`: the few fields of pods, nodes and namespaces that the rules read; `decode`: from what the API server writes; `selectors`: which
  objects a label selector selects.
- `cluster`: all of the cluster, indexed so that an event costs what it touches; `limit_matcher` and `group_index` are its parts.
- `limit_compiler`: limits and pods in, the spec of one node's NodePinConfig out; `limit_overrides`: which limit is redundant;
  `group_compiler`, `group_allowlist`: the same for groups, and what an administrator lets them name; `fairness`: who finds room.
- `node_view`: what a node was asked, took and reported; `limit_on_node`: one limit on one node; `limit_conditions`: what follows;
  `limit_status`: the status of a limit. `group_on_node`, `group_conditions`, `group_status`: the same for a group. `conditions`: what
  conditions are made of. `denials`: which denied calls are news, and how one reads.
- For people who look: `usage` (what all nodes report), `workloads`, `lasting` and `recommendation` (a limit for each), `explain` (why a pod
  is held as it is, and what to do next).
"""
