"""The one error of this package that is meant for its user to read."""


class ReleaseError(Exception):
    """The tree is not fit for release, or a file of it could not be made; the message says why, and
    what to do about it.
    """
