"""The rules as pure functions over values: no clock, no network, no files.

- `types` are the fields of pods, nodes and namespaces that the rules read; `decode` reads them from
  API objects, and `selectors` matches label selectors.
- `cluster` is an index of all objects: the cost of an event follows from what it touches. `dirty`,
  `combinations`, `limit_matcher` and `group_index` are its parts.
- `limit_compiler` compiles limits, `group_compiler` and `group_allowlist` compile groups, and
  `node_spec` builds the spec of one node's NodePinConfig. `limit_overrides` finds redundant limits;
  `fairness` shares room between namespaces.
- `node_view` is what one node requested, acknowledged and reported. `limit_on_node`,
  `limit_conditions` and `limit_status` make the status of a limit from it; `group_on_node`,
  `group_conditions` and `group_status` that of a group. `node_share`, `share_cache` and
  `conditions` serve both.
- `denials` finds new denied calls and describes them.
- For users: `usage` has the figures of all nodes, `workloads`, `lasting` and `recommendation`
  recommend limits, and `explain` says why a pod is limited as it is, and what to do next.

The rule numbers, such as P13, are those of `docs/semantics.md`.
"""
