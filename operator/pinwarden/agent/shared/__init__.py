"""Shared memory of pods: finding and making objects, what they hold, and what each pod borrows of them (M1 to M11).

Run by a process of its own, `pinwarden shared`, because it may read other processes' page tables and the agent with the token may not.
From the bottom up:

- `libc`: errors of the C library; `objects`: what identifies an object in /proc/PID/maps, and what a group is looked for by.
- `intervals`: sets of bytes as sorted intervals; `maps`, `pagemap`: what a process has mapped, and which of it is resident; `walk`: that of
  a pod; `pressure`: whether the kernel took pages away; `borrow`: what pods borrow, sampled no more often than it can have changed.
- `host`: the node's own namespaces; `within`: opening paths and nothing else; `cached`, `segments`: what files and System V segments hold;
  `finding`: the objects of a group; `making`: those that pinwarden makes.
- `users`: who uses an object at all; `charged`: which cgroups pay for it; `fair`: what pods have of their own.
- `record`: the file that tells the agent and the gate; `accountant`: a round of all of it; `daemon`: the process.
"""
