"""What the C library says of a call through ctypes that failed."""

import ctypes
import os


def last_error(path: str | None = None) -> OSError:
    """The exception for errno as it is now; for libraries that were loaded with `use_errno`."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
