"""Fixtures for tests of the seccomp gate on this machine's own kernel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gate_node.node import Node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()
