"""The error of a subcommand with exit code 1."""


class PluginError(Exception):
    """An error for the user to fix; the message says how."""
