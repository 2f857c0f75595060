"""The file of the NRI plugin."""

from pathlib import Path
from typing import Any

import pytest

from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.state import nri_status
from pinwarden.node.state.nri_status import LoweredLimits, NriStatus
from pinwarden.node.state.statefile import StateFile


def test_saved_status_is_loaded(tmp_path: Path) -> None:
    lowered = {"id": LoweredLimits("uid", Limits(8, UNLIMITED), Limits(4, 4))}
    status = NriStatus("containerd 2.4.2", "", {"id": "it has a listener"}, lowered)
    nri_status.save(tmp_path / "nri.json", status)
    assert nri_status.load(tmp_path / "nri.json") == status


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"runtime": 1, "failure": "", "ungated": {}},
        {"runtime": "", "failure": None, "ungated": {}},
        {"runtime": "", "failure": "", "ungated": []},
        {"runtime": "", "failure": "", "ungated": {"id": 1}},
        {"runtime": "", "failure": "", "ungated": {}, "lowered": []},
        {"runtime": "", "failure": "", "ungated": {}, "lowered": {"id": 1}},
        {"runtime": "", "failure": "", "ungated": {}, "lowered": {"id": ["uid", 1, 2, 3]}},
        {"runtime": "", "failure": "", "ungated": {}, "lowered": {"id": ["uid", 1, 2, 3, -4]}},
        {"runtime": "", "failure": "", "ungated": {}, "lowered": {"id": [0, 1, 2, 3, 4]}},
    ],
)
def test_status_of_other_types_is_a_value_error(tmp_path: Path, content: Any) -> None:
    StateFile(tmp_path / "nri.json", 1).save(content)
    with pytest.raises(ValueError, match=r"text|object"):
        nri_status.load(tmp_path / "nri.json")


def test_file_of_an_earlier_plugin_has_no_lowered_limits(tmp_path: Path) -> None:
    content = {"runtime": "containerd", "failure": "", "ungated": {}}
    StateFile(tmp_path / "nri.json", 1).save(content)
    assert nri_status.load(tmp_path / "nri.json") == NriStatus("containerd")


def test_damaged_file_stays_and_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "nri.json").write_text("{")
    with pytest.raises(ValueError, match="not usable"):
        nri_status.load(tmp_path / "nri.json")
    assert (tmp_path / "nri.json").exists()
