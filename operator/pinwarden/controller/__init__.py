"""The operator: a thin edge around `plan`, in one asyncio process.

- `client`: requests to the API server; `reflector`: a list and watch over it; `transform`: what is kept of an object.
- `kopf_watch`: PinLimits, ClusterPinLimits and SharedMemoryGroups through kopf, which runs in a thread of its own; `resync`: what kopf does
  not tell.
- `store`: everything that is known, and what is dirty; `spec_reconciler`, `status_reconciler`, `finalizers`: from dirty to written;
  `workqueue`: queues and paces for it; `items`: where the failure of an item ends.
- `write_guard`, `leader_election`: when writing is allowed, and who may.
- `events`: Kubernetes Events of what happened to a limit or group; `denial_events`: those on pods, of denied calls.
- `metrics_counters`, `metrics_totals`, `metrics_collector`: what reports add up to, as metrics; `metrics`, `http_server`; `daemon` puts all
  together.
- `uninstall`: `pinwarden uninstall`.
"""
