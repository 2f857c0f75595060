"""The `pinwarden` command: one module for each subcommand, from arguments to an exit code."""
