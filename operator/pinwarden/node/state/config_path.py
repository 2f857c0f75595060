"""The path and the version of the last configuration. Standard library only, for small readers."""

from pathlib import Path
from typing import Final

CONFIG_VERSION: Final = 1


def config_path(state_dir: Path, *, local: bool) -> Path:
    """Return the path of the last configuration: one file for local files, another for an API
    server.
    """
    return state_dir / ("local.json" if local else "nodepinconfig.json")
