"""The gate, `pinwarden gate`: answers the gated system calls of whole pods.

The gate uses seccomp user notification. A pod needs no capability for this. Pinning calls get the
level Deny, and mappings of shared memory objects the level Converge. The rules are in
docs/semantics.md.

Three processes share the work, and each may die alone. The *holder* keeps the descriptors of the
container runtime. The *gate* gets copies of them and answers. The *agent* reads the gate's status
file and raises the rlimits of gated pods.

In the order of a notification: `daemon` (the process), `dispatcher` (fair turns between pods),
`journal` (notifications of a killed gate), `pending`, `handler` and `decision` (continue, fail or
retry). A decision reads `pin_requests`, `amounts` and `map_requests` (the content of a call),
`pod_limits` and `budgets` (the limits), and `map_targets`, `borrow_rules` and `borrow_gate`
(whether groups allow a mapping). `caller` detects the return of a call, and `async_reads` keeps
reads from blocking other pods. `container` and `profiles` belong to the container runtime,
`call_names` and `publisher` to reports.
"""
