"""Everything on a node: five processes, and the modules that they share.

A room is a folder, a subcommand and a container of the same name:

- `agent`: CAP_SYS_RESOURCE, the API server. Writes the configuration in force and `saved.json`.
- `gate`: CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH. Writes `gate.json` and the journal.
- `accountant`: CAP_SYS_ADMIN, CAP_SYS_PTRACE and more. Writes `shared.json`.
- `holder`: no capability. Has two sockets.
- `nri`: no capability, the container runtime's NRI socket. Writes `nri.json`.

Only the agent has a network.

The rooms import nothing of each other, and talk through files and sockets only. Shared, from the
bottom up: `linux` (the kernel's interfaces), `seccomp` (the gated calls and the profiles), `shm`
(the identity of an object of shared memory), `state` (the files between the processes), `pods` (the
pods of this node and their processes).
"""
