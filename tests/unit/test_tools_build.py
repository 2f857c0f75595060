"""How pieces are built: without a trace of a build that failed, was interrupted or was killed."""

from pathlib import Path

import pytest

from cluster.cache import cached
from cluster.commands import run
from cluster.errors import ClusterError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PINWARDEN_CACHE", str(folder))
    return folder


def pieces(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def test_a_full_disk_is_said_and_leaves_no_half_piece(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").touch()
        Path("/dev/full").write_bytes(b"more")

    with pytest.raises(ClusterError, match=r"piece cannot be built: .*No space left on device"):
        cached("piece", [], build)
    assert pieces(cache) == set()


def test_a_command_that_fails_is_named_with_its_messages() -> None:
    with pytest.raises(ClusterError, match=r"\Ash -c .*: exit status 3\nbroken\Z"):
        run(["sh", "-c", "echo broken >&2; exit 3"])
    with pytest.raises(ClusterError, match=r"exit status 1\nno such thing\Z"):
        run(
            ["sh", "-c", "echo fmt >&2; echo no such thing >&2; exit 1"], consume=lambda line: line == "fmt\n"
        )
