"""The `pinwarden` command: arguments in, exit codes out; each subcommand imports what it needs when it runs."""
