"""The error that ends a subcommand with exit code 1."""


class PluginError(Exception):
    """An error that the user can fix; the message says how."""
