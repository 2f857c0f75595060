"""The accountant, `pinwarden accountant`: finds and provisions shared memory, and samples borrows.

A borrow is a pod's use of a group's objects (M1 to M11, see docs/semantics.md). The accountant
is a process of its own, because it may read the page tables of other processes. The agent has the
token and may not. From the bottom up:

- `finder`: the objects of a group; `provisioner`: the objects with `management: Create`.
- `page_walk`: the mapped pages of an object in a pod; `sampler`: the borrows of pods.
- `users`: the processes that use an object; `dead_cgroups`: charges of removed cgroups.
- `round_time`: the seconds for each group; `report`: the reports for the agent;
  `accountant`: a round of all of this; `daemon`: the process.
"""
