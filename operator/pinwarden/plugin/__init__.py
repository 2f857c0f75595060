"""`kubectl pinwarden`: what pods pin, why they are limited as they are, and what to do next.

The plugin only reads the API server, with the user's own rights. `commands` defines the command line as values; the
parser and the completion (`complete`) are made from it. `client` and `fetch` read the API server. `top`, `explain`,
`probe` and `recommend` are the subcommands: each gets values from `plan` and prints them with `output`. Modules are
imported when needed, so `--help` and the completion of a flag start fast.
"""
