"""The operator: a thin layer around `plan`, in one asyncio process; see docs/semantics.md.

- Input: `client` sends requests to the API server. `reflector` lists and watches a resource, and
  `transform` selects the stored fields. `handlers` receives kopf's events of PinLimits,
  ClusterPinLimits and SharedMemoryGroups, `kopf_thread` hosts kopf, `resources` reads the objects,
  and `resync` finds the changes without an event.
- State: `store` has all known objects and the dirty names; `managed_resource` is the entry of a
  limit or group; `agent_liveness` tracks the agents.
- Output: `spec_reconciler`, `status_reconciler` and `finalizers` write for dirty names. `workqueue`
  and `ratelimit` order the writes, `items` contains failures, and `write_guard` with
  `leader_election` allows writes.
- Events: `events` on limits, groups and nodes; `denial_events` on pods.
- Metrics: `metrics` counts the operator's actions. `metrics_collector` reads `metrics_totals`,
  `metrics_counters` and the tables `metrics_families` and `metrics_resources`. `http_server` serves
  all.
- `daemon` wires the parts; `uninstall` is `pinwarden uninstall`.
"""
