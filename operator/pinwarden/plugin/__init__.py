"""`kubectl pinwarden`: the pinned memory of pods, the reasons of their level, and the next step.

The plugin only reads the API server, with the user's own rights. `commands` defines the command
line as values for the parser and the completion (`complete`). `client` and `fetch` read the API
server. `top`, `explain`, `probe` and `recommend` are the subcommands: each gets values from `plan`
and prints them with `output`. Modules are imported when needed, so `--help` and the completion of a
flag start fast.
"""
