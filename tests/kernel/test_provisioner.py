"""Objects are created and removed by a process that may die at any line of it (M9, M10, H3).

The next process completes the work.
"""

import errno
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.node.accountant import provision_child, provisioner
from pinwarden.node.accountant.provisioner import PREFIX, Provisioner
from pinwarden.node.linux import sysvshm
from pinwarden.node.linux.mountinfo import read_mountinfo

from .nodes import CGROUP
from .shared_nodes import group

MIB = 2**20
KEY = 0x50770009
BACKINGS: dict[str, dict[str, Any]] = {
    "tmpfs": {"tmpfs": {}},
    "System V": {"sysvShm": {"key": KEY, "ipcNamespace": "Host"}},
}
OWN = CGROUP / "pinwarden/cut_g"
MOUNT = f"{PREFIX}/cut/g"


def dies(line: int, work: Callable[[], None]) -> bool:
    """Kill a process and its children at this line of the provisioner; return whether it died.

    Otherwise the work was complete before this line.
    """
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in (provisioner.__file__, provision_child.__file__):
                return None
            left -= event == "line"
            if left < 0:
                os.killpg(0, signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    while OWN.exists() and (OWN / "cgroup.procs").read_text():  # its own child may be dying still
        time.sleep(0.001)
    return status == signal.SIGKILL


def segment() -> sysvshm.Segment | None:
    return next((each for each in sysvshm.own_segments() if each.key == KEY), None)


def mounted() -> int:
    return sum(mount.point == MOUNT for mount in read_mountinfo(Path("/proc/1")))


def charged() -> int:
    lines = (line.split() for line in (OWN / "memory.stat").read_text().splitlines())
    return next(int(value) for key, value in lines if key == "shmem")


@pytest.fixture(params=BACKINGS)
def asked(request: pytest.FixtureRequest) -> NodeGroup:
    backing = BACKINGS[request.param]
    content = group(backing, management="Create", capacity=MIB, owner={"user": 1000, "mode": 0o640})
    return NodeGroup.model_validate({**content, "name": "cut/g"})


def released(maker: Provisioner, asked: NodeGroup) -> bool:
    """Remove everything of a group, as a round of the accountant does; False while busy."""
    try:
        maker.release(asked, known=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@pytest.mark.rule("M9", "M10", "H3")
def test_provisioning_killed_at_any_step_is_completed_and_removed_by_the_next(
    asked: NodeGroup, tmp_path: Path
) -> None:
    def maker() -> Provisioner:
        made = Provisioner(Path("/proc"), CGROUP, 4 * MIB, tmp_path / "segments.json")
        made.begin()
        return made

    for line in count():
        made = dies(line, partial(maker().ensure, asked))
        maker().ensure(asked)
        if asked.backing.tmpfs:
            about = os.stat(f"{MOUNT}/shared/memory")
            assert (about.st_size, about.st_blocks * 512, about.st_uid) == (MIB, MIB, 1000), line
            assert (stat.S_IMODE(about.st_mode), mounted()) == (0o640, 1), line
        else:
            found = segment()
            assert found is not None
            assert (found.size, found.used) == (MIB, MIB), line
        assert charged() == MIB, line
        taken = dies(line, partial(maker().release, asked, known=True))
        # The kernel may let go later of what a dead process had in use.
        assert any(released(maker(), asked) for _ in range(1000)), line
        left = [OWN.exists(), Path(MOUNT).parent.exists(), mounted(), segment()]
        assert not any(left), (line, left)
        if not made and not taken:
            break
    assert line > 20
