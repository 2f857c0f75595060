"""A short run of the operator's fuzzer; `bench/fuzz.py operator` is the long one.

A failure prints the seed, which repeats the run.
"""

import os
from collections.abc import Iterator

import pytest

from fuzzing.server import KINDS, Server

from .operators import Cluster, Operator
from .test_operator import Case

SEED = int(os.environ.get("PINWARDEN_SEED", "20261129"))
OBJECTS = 25


@pytest.fixture(scope="module")
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Operator(cluster, tmp_path_factory.mktemp("operator")) as operator:
        operator.ready()
        case = Case(cluster)
        case.agent()
        yield Server(cluster, operator.process, case, SEED)


@pytest.mark.rule("H1", "H3")
@pytest.mark.parametrize("kind", KINDS)
def test_no_object_ends_the_operator_or_spoils_another(server: Server, kind: str) -> None:
    server.send(kind, OBJECTS)
    assert not server.tally.findings, server.tally
    assert server.tally.sent[kind] > OBJECTS // 5, server.tally
