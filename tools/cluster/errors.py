"""The one error of this package that is meant for its user to read."""


class ClusterError(Exception):
    """A part could not be built, started or stopped; the message says which, and what to do about
    it.
    """
