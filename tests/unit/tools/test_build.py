"""How pieces are built: beside each other, and without a trace of a build that failed, was
interrupted or was killed.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.build import MODULES
from cluster.cache import cached
from cluster.commands import run
from cluster.errors import ClusterError
from cluster.paths import GO_MODULES
from cluster.plan import Step, carry_out, report

BUILDER = """
import signal, sys
from cluster.cache import cached
from cluster.commands import run
from cluster.plan import Step, carry_out

def build(folder):
    (folder / "half").touch()
    run(["sh", "-c", sys.argv[2], sys.argv[1]])

def make(name):
    return lambda: cached(name, [], build)

try:
    carry_out([Step(name, make(name), 1) for name in ("one", "two")])
except KeyboardInterrupt:
    print("interrupted")
"""

ALONE = "echo $$ >>$0; exec sleep infinity"
WITH_CHILD = "echo $$ >>$0; sleep infinity & echo $! >>$0; wait"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PINWARDEN_CACHE", str(folder))
    return folder


def pieces(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def start(pids: Path, script: str, processes: int) -> "subprocess.Popen[str]":
    """Start a builder of two pieces by a script and wait until its processes run."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(pids), script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == processes)
    return process


def alive(pids: Path) -> list[str]:
    """Return those processes that run; one that ended counts no more, though nobody has waited for
    it.
    """
    found = []
    for pid in pids.read_text().split():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def test_a_full_disk_is_said_and_leaves_no_half_piece(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").touch()
        Path("/dev/full").write_bytes(b"more")

    with pytest.raises(ClusterError, match=r"piece cannot be built: .*No space left on device"):
        cached("piece", [], build)
    assert pieces(cache) == set()


def test_an_interrupted_build_ends_its_commands_and_leaves_nothing(
    cache: Path, tmp_path: Path
) -> None:
    process = start(tmp_path / "pids", WITH_CHILD, 4)
    assert len(pieces(cache)) == 2
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "interrupted\n"
    assert alive(tmp_path / "pids") == []
    assert pieces(cache) == set()


def test_a_killed_build_ends_its_commands_and_the_next_removes_its_draft(
    cache: Path, tmp_path: Path
) -> None:
    process = start(tmp_path / "pids", ALONE, 2)
    (draft, _) = sorted(pieces(cache))
    process.kill()
    process.communicate()
    eventually(lambda: alive(tmp_path / "pids") == [])
    assert (cache / draft / "half").exists()
    place = cached("one", [], lambda folder: (folder / "whole").touch())
    assert [path.name for path in place.iterdir()] == ["whole"]
    assert draft not in pieces(cache)


def test_a_failed_step_ends_the_commands_of_the_others(cache: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"

    def fail() -> None:
        eventually(started.exists)
        raise ClusterError("no such mirror")

    def endless() -> None:
        cached(
            "endless", [], lambda _: print(run(["sh", "-c", "touch $0; sleep infinity", started]))
        )

    with pytest.raises(ClusterError, match="no such mirror"):
        carry_out([Step("endless", endless, 1), Step("failing", fail, 1)])
    assert pieces(cache) == set()
    assert run(["echo", "again"]) == "again\n"


def test_a_command_that_fails_is_named_with_its_messages() -> None:
    with pytest.raises(ClusterError, match=r"\Ash -c .*: exit status 3\nbroken\Z"):
        run(["sh", "-c", "echo broken >&2; exit 3"])
    with pytest.raises(ClusterError, match=r"exit status 1\nno such thing\Z"):
        run(
            ["sh", "-c", "echo fmt >&2; echo no such thing >&2; exit 1"],
            consume=lambda line: line == "fmt\n",
        )


def test_the_temporary_files_of_a_command_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder = Path(run(["sh", "-c", 'touch "$TMPDIR/left"; echo "$TMPDIR"']).strip())
    assert folder.parent == temporary
    with pytest.raises(ClusterError):
        run(["sh", "-c", 'touch "$TMPDIR/left"; kill -9 $$'])
    assert list(temporary.iterdir()) == []


def test_steps_run_beside_each_other_but_after_what_they_need() -> None:
    order: list[str] = []
    both = threading.Barrier(2)

    def step(name: str, meet: bool, *after: str) -> Step:
        def make() -> None:
            if meet:
                both.wait()
            order.append(name)

        return Step(name, make, 1, after)

    carry_out([step("a", True), step("b", True), step("c", False, "a", "b"), step("d", False, "c")])
    assert set(order[:2]) == {"a", "b"}
    assert order[2:] == ["c", "d"]


def test_nothing_is_said_of_what_is_there_already(capsys: pytest.CaptureFixture[str]) -> None:
    carry_out([Step("there", lambda: None, 100), Step("too", lambda: None, 100, ["there"])])
    assert capsys.readouterr().err == ""


def test_each_step_is_one_line_and_a_long_one_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.plan.GLANCE_SECONDS", 0.05)
    monkeypatch.setattr("cluster.plan.POLL_SECONDS", 0.01)
    monkeypatch.setattr("cluster.plan.TELL_SECONDS", 0.1)
    said = ""

    def wait_for(text: str) -> None:
        def is_said() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return text in said

        eventually(is_said)

    def compile_all() -> None:
        wait_for("building 2 pieces, about ")
        report(0, 1000, "packages compiled")
        report(500, 1000, "packages compiled")
        wait_for("compiler: 500 of 1000 packages compiled, about ")

    carry_out([Step("compiler", compile_all, 300), Step("disk", lambda: None, 10, ["compiler"])])
    said += capsys.readouterr().err
    lines = said.splitlines()
    assert " 0 of 1000" not in said
    assert re.fullmatch(
        r"  1 of 2   0:\d\d  compiler built in \d+ s(, about \d+ s left)?", lines[-2]
    )
    assert re.fullmatch(r"  2 of 2   0:\d\d  disk built in 0 s", lines[-1])


@pytest.mark.parametrize("name", MODULES)
def test_the_sums_of_a_module_cover_its_commands(name: str) -> None:
    imported = re.findall(
        r'^\s*(?:import )?_ "(\S+)"$', (GO_MODULES / name / "tools.go").read_text(), re.M
    )
    assert sorted(imported) == sorted(MODULES[name].packages.values())
