"""The agent, `pinwarden agent`: counts what pods have pinned, sets RLIMIT_MEMLOCK, and reports.

In the order to read it:

- `config_watcher`, `api_client`, `kubeconfig`: the configuration from the API server;
  `config_files`: from files; `retainer`: what is kept for pods that a configuration leaves out.
- `reconciler`: a round of everything. `allocator` decides (pure) which RLIMIT_MEMLOCK each process
  gets; `enforcer` sets it; `original_limits` has on disk what each process had before; `releaser`
  gives that back.
- `gate_reader`, `accountant_reader`: what the gate and the accountant wrote down.
- `overshoots`, `source_levels`, `status`: the report; `status_writer` decides when to write it.
- `loop`: the main thread; `threads`: the others; `status_socket`: for `pinwarden status`;
  `metrics_collector`, `metrics`, `http_server`: for Prometheus and probes; `daemon`: the process.
"""
