"""Where things are: the Go modules in the source tree, and the cache of built pieces outside it."""

import os
from pathlib import Path

GO_MODULES = Path(__file__).resolve().parent / "go"


def cache_root() -> Path:
    """Return ``$PINWARDEN_CACHE``, else ``$XDG_CACHE_HOME/pinwarden``, else ``~/.cache/pinwarden``.

    An empty variable counts as unset. The folder need not exist yet.
    """
    if own := os.environ.get("PINWARDEN_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "pinwarden"
