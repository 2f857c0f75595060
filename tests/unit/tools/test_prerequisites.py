"""A fresh Debian 12, and how `make` reports and installs the packages that a machine lacks."""

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

SCRIPT = Path(__file__).resolve().parents[3] / "tools/prerequisites.sh"
DEBIAN_PYTHON = "3.11.2"


def prerequisites(path: str) -> "subprocess.CompletedProcess[str]":
    command = ["/bin/sh", str(SCRIPT), sys.executable]
    return subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def test_a_machine_that_lacks_nothing_is_left_alone() -> None:
    done = prerequisites(os.environ["PATH"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_packages_that_cannot_be_installed_are_named(tmp_path: Path) -> None:
    (tmp_path / "id").symlink_to("/usr/bin/id")  # no gcc, and no apt-get either
    done = prerequisites(str(tmp_path))
    assert done.returncode == 1
    command = done.stderr.splitlines()[-1]
    assert command.startswith("As root: apt-get install ")
    assert {"gcc", "libc6-dev", "pkg-config", "git"} <= set(command.split())
    assert "python3-venv" not in command


def test_the_python_of_debian_can_install_the_whole_environment() -> None:
    requirements = {item.name: item.metadata["Requires-Python"] for item in distributions()}
    refused = {
        name: text
        for name, text in requirements.items()
        if text and not SpecifierSet(text).contains(DEBIAN_PYTHON)
    }
    assert refused == {}
