"""The seccomp gate: answers the pinning calls of whole pods through seccomp user notification (level Deny, no capability in the pod), and
calls that map what groups of shared memory are made of (level Converge).

Three programs share the work, so that each does little and may die alone:

- the *holder* keeps the descriptors that the container runtime sends, and does nothing else,
- the *gate* takes copies of them, and answers,
- the *agent* reads what the gate writes down (`record`), and raises the rlimits of those whom the gate holds.

From the bottom up: `notify` (the kernel's interface), `calls` (what a call asks for), `naming` (its name for people), `mappings` (what it
maps), `accounts` (whether it fits; pure), `threads` and `pods` (what /proc and the cgroups tell), `journal` (what outlives a gate that is
killed), `shared`, `targets` and `lending` (what groups of shared memory have against it: the rules, what it is for, and the two together),
`waiting` and `decision` (what a call is answered), `gate` (whose turn it is), `identity` (what the runtime says of a container),
`descriptors` (the protocol between gate and holder), `holder`, `daemon` (the gate as a process), `profiles` (which calls are gated),
`record` (what the agent reads).
"""
