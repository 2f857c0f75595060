"""docs/quick-start.md, followed to the letter on an empty cluster.

The commands run in their order, and their answers are compared. Ages, process ids, counts of
denials and names of nodes may differ, and `...` stands for left out lines. The time of each answer
since `helm install` is printed (`pytest -rP`).
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from cluster.cluster import Cluster
from cluster.install import COMMAND, ROOT, environment
from cluster.patience import Patience

from ..waiting import CLUSTER_SECONDS, POLL_SECONDS

PAGE = ROOT / "docs" / "quick-start.md"
PLUGIN = f"{sys.executable} -m pinwarden.plugin"
WAITED_FOR = re.compile(r"^kubectl (get|logs|wait|pinwarden) ")
"""What may take a moment to be as the page shows it."""


class Step(NamedTuple):
    """A command, and the lines that the page shows as its answer."""

    command: str
    answer: tuple[str, ...]


def steps(text: str) -> list[Step]:
    """What the console blocks of a page tell to type."""
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *answer = part.rstrip("\n").split("\n")
            found.append(Step(command, tuple(answer)))
    return found


def shape(line: str, columns: frozenset[int]) -> str:
    """Return the words of a line without varying parts, such as the numbers of `columns`."""
    words = [
        "N" if index in columns and word.isdigit() else word
        for index, word in enumerate(line.split())
    ]
    text = " ".join(re.sub(r"^(\d+(d|h|m|s))+$", "AGE", word) for word in words)
    text = re.sub(r"\(pid \d+\)", "(pid N)", text)
    text = re.sub(r"; and \d+ more in the last (minute|\d+ minutes)", "", text)
    return re.sub(r"\bnode-?\d+\b", "NODE", text)


def shapes(lines: Sequence[str]) -> list[str]:
    head = lines[0].split() if lines else []
    columns = frozenset(index for index, word in enumerate(head) if word in ("DENIED", "OBSERVED"))
    return [shape(line, columns) for line in lines]


def is_as_shown(shown: Sequence[str], seen: Sequence[str]) -> bool:
    """Whether the lines are those of the page, which shows nothing where anything will do."""
    if not shown:
        return True
    pattern = "".join(
        "(?:.*\n)*" if line == "..." else re.escape(line) + "\n" for line in shapes(shown)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in shapes(seen))) is not None


STEPS = steps(PAGE.read_text())


def test_page_installs_as_the_cluster_is_installed() -> None:
    (command,) = (step.command for step in STEPS if step.command.startswith("helm install"))
    assert command == COMMAND.replace("upgrade --install", "install") + " --wait"


@pytest.fixture
def empty() -> Iterator[Cluster]:
    """A cluster of one node that has the image, and no pinwarden."""
    with Cluster() as running:
        yield running


def test_outputs_of_the_page_are_those_of_the_cluster(empty: Cluster) -> None:
    env = os.environ | environment(empty.kubeconfig) | {"PYTHONPATH": str(ROOT / "operator")}
    assert len(STEPS) >= 9
    started = time.monotonic()
    for step in STEPS:
        patience = Patience(CLUSTER_SECONDS)
        while (seen := _answer(step, env)) is not None:
            difference = f"{step.command}\nthe page shows:\n{step.answer}\nseen:\n{seen}"
            assert WAITED_FOR.match(step.command), difference
            assert not patience.ended, difference
            time.sleep(POLL_SECONDS)
        print(f"{time.monotonic() - started:5.0f} s  {step.command}")


def _answer(step: Step, env: dict[str, str]) -> str | None:
    """What the command answered where that is not what the page shows, else None."""
    done = subprocess.run(
        ["/bin/sh", "-c", step.command.replace("kubectl pinwarden", PLUGIN)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    as_shown = done.returncode == 0 and is_as_shown(step.answer, done.stdout.splitlines())
    return None if as_shown else done.stdout + done.stderr
