"""The node agent: finds the cgroups of pods, reads what their processes have pinned, and holds the limits of the node.

In the order to read it, from the bottom up:

- `cgroups`, `discovery`: which pods and directories are there; `ledger`: what processes have pinned. They read the kernel and decide
  nothing.
- `configuration`: what is to be held, and the memory of it. `kubeconfig`, `kube`, `watcher`: from the API server; `localconfig`: from
  files.
- `subjects`: what it means on this node; `followed`, `governed`: the processes and the subjects while they exist; `scopes`, `groups`: which
  limit is over which processes, and who must be dealt together; `parting`: those that nothing holds any more.
- `deal`: decides and reads nothing; `saved`: what each process had before; `gates`: what makes the kernel refuse; `dealing`: the one
  place that touches processes.
- `gated`, `accounted`: what the gate and the accountant told. The accountant is in `shared` and a process of its own, as the gate is.
- `overshoots`, `sources`, `report`: what is said of the node; `engine` puts all of the above together.
- `loop`: the main thread; `workers`: the others; `reporter`: the one that writes the report; `statussocket`: for `pinwarden status`;
  `snapshotted`, `metrics`, `web`: for Prometheus and probes; `daemon`: the process.
- `statefile`, `patterns`, `backoff`, `guard`, `ending`: what several of them use. `guard` is how each process works on an item of a loop,
  so that what fails is the item.
"""
