"""The operator: a thin edge around `plan`, in one asyncio process.

- `client`: requests to the API server; `watch`: a pruning list and watch over it; `prune`: what is kept of an object.
- `limits`: PinLimits, ClusterPinLimits and SharedMemoryGroups through kopf, which runs in a thread of its own;
  `census`: what kopf does not tell.
- `state`: everything that is known, and what is dirty; `specs`, `statuses`, `finalizers`: from dirty to written;
  `work`: queues and paces for it.
- `gate`, `leader`: when writing is allowed, and who may; `backoff`: how long to wait after a failure.
- `events`: Kubernetes Events of what happened to a limit or group; `refusals`: those on pods, of refused calls.
- `rises`, `tally`, `inventory`: what reports add up to, as metrics; `metrics`, `web`; `daemon` puts all together.
- `uninstall`: `pinwarden uninstall`; `seizure`: the Lease in its hands; `leftovers`: what is in its way.
"""
