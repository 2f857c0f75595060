"""The gate, `pinwarden gate`: answers the pinning calls of whole pods through seccomp user notification (level Deny, no capability in the
pod), and calls that map what groups of shared memory are made of (level Converge).

Three processes share the work, so that each does little and may die alone: the *holder* keeps the descriptors that the container runtime
sends; the *gate* takes copies of them, and answers; the *agent* reads what the gate writes down, and raises the rlimits of those whom the
gate holds.

From the bottom up: `pin_requests` and `map_requests` (what a call asks for), `call_names` (its name for people), `budgets` (whether it
fits; pure), `caller` and `pod_limits` (what /proc and the cgroups tell), `journal` (what outlives a gate that is killed), `borrow_rules`,
`map_targets` and `borrow_gate` (what groups of shared memory have against a mapping), `pending` and `handler` (what a call is answered),
`dispatcher` (whose turn it is), `container` (what the runtime says of a container), `profiles` (which calls are gated), `publisher` (what
the agent reads), `daemon` (the process).
"""
