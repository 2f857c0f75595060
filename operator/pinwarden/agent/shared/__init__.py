"""Shared memory of pods: finding and making objects, what they hold, and what each pod borrows of them (M1 to M11).

Run by a process of its own, `pinwarden shared`, because it may read other processes' page tables and the agent with the token may not.
From the bottom up:

- `objects`: what identifies an object in /proc/PID/maps, and what a group is looked for by.
- `intervals`: sets of pages as sorted intervals; `maps`, `pagemap`: what a process has mapped, and which of it is resident.
- `borrow`: what pods borrow, sampled no more often than it can have changed.
- `record`: the file that tells the agent and the gate.
"""
