"""The rules as pure functions over values: no clock, no network, no files.

- `types` has the used fields of pods, nodes and namespaces; `decode` reads them from API objects,
  and `selectors` matches label selectors.
- `cluster` is an index of all objects: an event costs as much as the objects that it concerns. It
  consists of `dirty`, `combinations`, `limit_matcher`, `group_index` and `sets`.
- `limit_compiler` compiles limits, `group_compiler` and `group_allowlist` compile groups, and
  `node_spec` builds the spec of one node's NodePinConfig. `limit_overrides` finds redundant limits;
  `fairness` shares room between namespaces.
- `node_view` has the requested, acknowledged and reported limits of one node. From there,
  `limit_on_node`, `limit_conditions` and `limit_status` build the status of a limit;
  `group_on_node`, `group_conditions` and `group_status` build the status of a group. `node_share`,
  `share_cache` and `conditions` serve both.
- `denials` finds new denied calls and describes them.
- For users: `usage` has the figures of all nodes; `workloads`, `owners`, `lasting` and
  `recommendation` recommend limits, and `explain` says why a pod is limited so, with the next step.

The rule numbers, such as P13, are those of `docs/semantics.md`.
"""
