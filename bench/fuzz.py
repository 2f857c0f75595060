"""The long run of the fuzzers (`tools/fuzzing`): prints what was sent and what was found, and fails when anything was.

`node` needs a kernel of its own: `python -m cluster guest --kind uml --timeout 7200 -- .venv/bin/python bench/fuzz.py node`.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

from fuzzing.tally import Tally


def node(inputs: int, seed: int) -> Tally:
    """Agent, gate, accountant and holder under so many inputs."""
    from fuzzing.node import FuzzError, Node

    with tempfile.TemporaryDirectory() as folder:
        running = Node(Path(folder), seed)
        try:
            return running.run(inputs)
        except FuzzError:
            logging.exception("the run ended early")
            return running.tally
        finally:
            running.close()


def main() -> int:
    """1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("node",))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    began = time.monotonic()
    tally = node(options.inputs, options.seed)
    sys.stdout.write(f"{tally}\n  in {time.monotonic() - began:.0f} s\n")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
