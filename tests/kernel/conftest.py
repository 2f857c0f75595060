"""Fixtures for tests on a real kernel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import backings
from .nodes import Node
from .shared_nodes import SharedNode


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


@pytest.fixture
def shares(tmp_path: Path) -> Iterator[SharedNode]:
    shares = SharedNode(tmp_path)
    yield shares
    shares.close()


@pytest.fixture
def mounts(kind: str) -> Iterator[None]:
    with backings.mounts(kind):
        yield
