"""Run the fuzzers (`tools/fuzzing`) for long; print inputs and findings, and fail on a finding.

`operator` starts an API server of its own. `node` needs a kernel of its own:
`python -m cluster guest --kind uml --timeout 7200 -- .venv/bin/python bench/fuzz.py node`.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

from fuzzing.tally import Tally

ROOT = Path(__file__).parents[1]


def node(inputs: int, seed: int) -> Tally:
    """Run agent, gate, accountant and holder with this many inputs."""
    from fuzzing.checked_node import FuzzError
    from fuzzing.node import Node

    with tempfile.TemporaryDirectory() as folder:
        running = Node(Path(folder), seed)
        try:
            return running.run(inputs)
        except FuzzError:
            logging.exception("the run ended early")
            return running.tally
        finally:
            running.close()


def operator(objects: int, seed: int) -> Tally:
    """The operator under so many accepted objects."""
    sys.path.insert(0, str(ROOT))
    from tests.api.operators import Operator, prepared
    from tests.api.test_operator import Case

    from fuzzing.server import Server

    with (
        tempfile.TemporaryDirectory() as folder,
        prepared() as cluster,
        Operator(cluster, Path(folder)) as process,
    ):
        process.ready()
        case = Case(cluster)
        case.agent()
        tally = Server(cluster, process.process, case, seed).run(objects)
        if process.process.poll() is None:
            failures = [
                line
                for line in process.get("/metrics")[1].splitlines()
                if "item" in line and line[0] != "#"
            ]
            sys.stdout.write("\n".join([*failures, ""]))
        else:
            sys.stdout.write("\n".join(str(line) for line in process.log[-3:]))
        return tally


def main() -> int:
    """1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("node", "operator"))
    parser.add_argument(
        "--inputs", type=int, default=10_000, help="of the node's, or accepted objects"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    began = time.monotonic()
    run = node if options.side == "node" else operator
    tally = run(options.inputs, options.seed)
    sys.stdout.write(f"{tally}\n  in {time.monotonic() - began:.0f} s\n")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
