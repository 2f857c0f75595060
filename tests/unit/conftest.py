"""Random examples have no deadline, so a slow machine fails no test. CI tries more examples."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile(
    "pinwarden", deadline=None, max_examples=100 if "CI" in os.environ else 40
)
settings.load_profile("pinwarden")

LEVELS = 1500


@pytest.fixture
def deep_tree(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with folders inside each other, deeper than Python's stack; the parameter is the
    name of each.

    In a place of its own: what pytest cleans up itself must not be as deep.
    """
    root = Path(tempfile.mkdtemp(prefix="pinwarden-deep-"))
    above = os.open(root, os.O_DIRECTORY)
    for _ in range(LEVELS):
        os.mkdir(request.param, dir_fd=above)
        below = os.open(request.param, os.O_DIRECTORY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)
