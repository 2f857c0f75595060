"""The file `gate.journal`, as far as other processes need it: its lock is the lock of the gate.

The gate keeps received calls in the file (`gate.journal`), and locks the file while running. The
kernel releases the lock at the end of the process. So the lock says at any moment whether a gate
runs, also right after a gate was killed.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

JOURNAL: Final = "gate.journal"


def gate_runs(run_dir: Path) -> bool:
    """Return whether a gate has the lock. Raises OSError for an unusable file."""
    try:
        descriptor = os.open(run_dir / JOURNAL, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
