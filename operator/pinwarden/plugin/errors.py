"""What ends a subcommand with exit code 1."""


class PluginError(Exception):
    """Something that the user can mend; the message says what is wrong, and how."""
