"""The gate, `pinwarden gate`: answers the gated system calls of whole pods.

It uses seccomp user notification, and no capability in the pod. It enforces the level Deny for calls
that pin, and the level Converge for calls that map objects of shared memory groups. The rules are in
docs/semantics.md.

Three processes share the work, so that each is small and may die alone. The *holder* keeps the
descriptors that the container runtime sends. The *gate* gets copies of them and answers. The *agent*
reads the gate's status file and raises the rlimits of gated pods.

In the order of a notification: `daemon` (the process), `dispatcher` (fair turns between pods),
`journal` (notifications that outlive a gate), `pending`, `handler` and `decision` (continue, fail or
retry). A decision reads `pin_requests`, `amounts` and `map_requests` (what a call asks for),
`pod_limits` and `budgets` (whether it fits), and `map_targets`, `borrow_rules` and `borrow_gate`
(whether groups allow a mapping). `caller` detects that a call has returned, and `async_reads` keeps
reads from blocking other pods. `container` and `profiles` belong to the container runtime,
`call_names` and `publisher` to reports.
"""
