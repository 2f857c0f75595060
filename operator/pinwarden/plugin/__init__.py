"""`kubectl pinwarden`: what pods pin, why they are held as they are, and what to do about it, from a user's own place and rights.

It reads the API server and nothing else, and writes nothing. `grammar` is the command line as values, from which both its parser and its
completion (`complete`) are made; `client` and `gather` are the edge to the API server; `top`, `explain`, `probe` and `recommend` are the
subcommands: each asks `plan` for values and prints them by `output`. Modules are imported when they are needed: `--help` and the completion
of a flag cost no more than a Python that starts.
"""
