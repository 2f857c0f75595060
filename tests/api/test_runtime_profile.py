"""Pinwarden's default seccomp rules are those of the pinned containerd."""

import os
import subprocess
from importlib import resources

from cluster.build import ENVIRONMENT, go
from cluster.paths import GO_MODULES

ARGUMENTS = ["run", "-mod=readonly", "-trimpath", "./defaultprofile"]


def test_runtimes_default_rules_are_those_of_its_source() -> None:
    done = subprocess.run(
        [go(), *ARGUMENTS],
        cwd=GO_MODULES / "cluster",
        env=os.environ | ENVIRONMENT | {"GOARCH": "amd64"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    carried = resources.files("pinwarden.node.seccomp").joinpath("runtime_default.json").read_text()
    assert carried == done.stdout, "run `make profiles`"
