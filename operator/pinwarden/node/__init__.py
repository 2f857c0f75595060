"""Everything that runs on a node: four processes, and what they share.

| Room | Process | Container | Capabilities | Network | Files that it writes |
| --- | --- | --- | --- | --- | --- |
| `agent` | `pinwarden agent` | `agent` | CAP_SYS_RESOURCE | API server, metrics | the kept configuration, `saved.json` |
| `gate` | `pinwarden gate` | `gate` | CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH | none | `gate.json`, the journal |
| `accountant` | `pinwarden accountant` | `accountant` | CAP_SYS_ADMIN, CAP_SYS_PTRACE and more | none | `shared.json` |
| `holder` | `pinwarden holder` | `holder` | none | none | its sockets |

The rooms import nothing of each other, and talk through files and sockets only. Shared, from the
bottom up: `linux` (the kernel's interfaces), `seccomp` (the gated calls and the profiles), `shm`
(what identifies an object of shared memory), `state` (the files between the processes), `pods` (the
pods of this node and their processes).
"""
