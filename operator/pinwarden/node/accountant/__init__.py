"""The accountant, `pinwarden accountant`: finds and provisions shared memory, and samples borrows.

A borrow is what a pod uses of a group's objects (M1 to M11, see docs/semantics.md). The accountant
is a process of its own, because it may read the page tables of other processes. The agent has the
token and may not. From the bottom up:

- `finder`: the objects of a group; `provisioner`: the objects that pinwarden creates.
- `page_walk`: the pages of an object that a pod has mapped; `sampler`: what pods borrow.
- `users`: the processes that use an object; `dead_cgroups`: charges of cgroups that are gone;
  `fair_view`: the memory of a pod itself.
- `round_time`: the seconds that groups share; `report`: the reports for the agent;
  `accountant`: a round of all of this; `daemon`: the process.
"""
