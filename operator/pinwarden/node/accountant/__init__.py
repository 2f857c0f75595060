"""The accountant, `pinwarden accountant`: finds and makes objects of shared memory, and samples what each pod borrows of them (M1 to M11).

It is a process of its own, because it may read other processes' page tables, and the agent with the token may not. From the bottom up:

- `finder`, `posix_shm`: the objects of a group; `provisioner`: those that pinwarden makes.
- `page_walk`: which pages of an object a pod has mapped; `sampler`: what pods borrow, sampled no more often than it can have changed.
- `users`: who uses an object at all; `dead_cgroups`: which cgroups pay for it; `fair_view`: what pods have of their own.
- `round_time`: the seconds that groups share; `accountant`: a round of all of it; `daemon`: the process.
"""
