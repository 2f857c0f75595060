"""A short run of the node's fuzzer; `bench/fuzz.py node` is the long one.

A failure prints the seed, which repeats the run. Runs inside the guest (`make test-kernel`).
"""

import os
from collections.abc import Iterator

import pytest

from fuzzing.node import KINDS, Node

SEED = int(os.environ.get("PINWARDEN_SEED", "20261129"))
INPUTS = 12


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), SEED)
    yield node
    node.close()


@pytest.mark.rule("H1", "H3")
@pytest.mark.parametrize("kind", KINDS)
def test_no_input_ends_a_process_or_lifts_a_limit(node: Node, kind: str) -> None:
    node.send(kind, INPUTS)
    assert not node.tally.findings, node.tally
    assert node.tally.sent[kind] == INPUTS
