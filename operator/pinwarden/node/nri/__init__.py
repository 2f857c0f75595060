"""The NRI plugin, `pinwarden nri`: puts the gate into containers when the runtime creates them.

NRI is the node resource interface of containerd. The process connects to the runtime's socket, and
needs no other right. `protocol` has the framing, `wire` and `messages` the messages, `adjustment`
the decision for a container, `memlock` its RLIMIT_MEMLOCK, `governed` the pods of the node's
configuration, and `plugin` and `daemon` the process. Standard library only. Rules:
docs/semantics.md.
"""
