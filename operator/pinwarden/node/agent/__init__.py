"""The agent, `pinwarden agent`: counts what pods have pinned, sets RLIMIT_MEMLOCK, and reports.

In the order to read it:

- `config_watcher`, `api_client`, `kubeconfig`: the configuration from the API server.
  `config_files`: the configuration from files. `retainer`: the limits of pods that a configuration
  leaves out.
- `reconciler`: the tick. `allocator` computes (pure) the `RLIMIT_MEMLOCK` of each process, and
  `enforcer` sets these limits. `original_limits` keeps the limits from before on disk. `releaser`
  restores them.
- `gate_reader`, `accountant_reader`: the state files of the gate and the accountant.
- `overshoots`, `source_levels`, `status`: the report. `status_writer` decides when to write it.
- `loop`: the main thread. `threads`: the other threads. `status_socket`: for `pinwarden status`.
  `metrics_collector`, `metrics`, `http_server`: for Prometheus and probes. `daemon`: the process.
"""
