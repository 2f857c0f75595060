"""State files that the processes of a node exchange.

`statefile` replaces and checks files. `config` is the configuration in force
(`nodepinconfig.json`), `gate_status` is `gate.json`, and `accountant_status` is `shared.json`.
`shutdown` ends a process on SIGTERM.
"""
