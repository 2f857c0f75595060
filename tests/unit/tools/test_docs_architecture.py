"""docs/architecture.md names modules that exist, and walks each way of data in eight stations at
most.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "operator" / "pinwarden"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = {
    **{folder.name: folder for folder in PACKAGE.iterdir() if folder.is_dir()},
    **{folder.name: folder for folder in (PACKAGE / "node").iterdir() if folder.is_dir()},
}
MODULES = sorted(set(re.findall(rf"`((?:{'|'.join(ROOMS)})\.(?!json)[a-z_]+)`", PAGE)))
PATHS = sorted(set(re.findall(r"`((?:node|plan|controller|common|api)/[a-z_/]+\.py)`", PAGE)))
WAYS = re.findall(r"^### (.* from .*)\n\n((?:.+\n)+)", PAGE, re.MULTILINE)


def test_modules_are_found() -> None:
    assert len(MODULES) > 30
    assert len(PATHS) > 5


@pytest.mark.parametrize("module", MODULES)
def test_module_of_the_page_exists(module: str) -> None:
    room, _, name = module.partition(".")
    assert (ROOMS[room] / name).is_dir() or (ROOMS[room] / f"{name}.py").exists()


@pytest.mark.parametrize("path", PATHS)
def test_path_of_the_page_exists(path: str) -> None:
    assert (PACKAGE / path).exists()


def test_each_way_of_data_has_eight_stations_at_most() -> None:
    stations = {title: re.findall(r"^\d\. ", text, re.MULTILINE) for title, text in WAYS}
    assert len(stations) == 3
    assert all(0 < len(numbers) <= 8 for numbers in stations.values())
