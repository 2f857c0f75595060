"""State files that the processes of a node exchange.

`statefile` replaces and checks files; `config` is `nodepinconfig.json`, the configuration in force;
`gate_status` is `gate.json`, and `accountant_status` is `shared.json`. `shutdown` ends a process on
SIGTERM.
"""
