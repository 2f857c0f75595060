"""The operator: a thin edge around `plan`, in one asyncio process.

- `client`: requests to the API server; `watch`: a pruning list and watch over it; `prune`: what is kept of an object.
- `limits`: PinLimits, ClusterPinLimits and SharedMemoryGroups through kopf, which runs in a thread of its own;
  `census`: what kopf does not tell.
- `state`: everything that is known, and what is dirty; `specs`, `statuses`, `finalizers`: from dirty to written;
  `work`: queues and paces for it.
- `leader`: who may write; `events`: Kubernetes Events of what happened to a limit or group; `metrics`, `web`; `daemon` puts all together.
"""
