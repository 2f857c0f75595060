"""The fork server that the other tests of this folder start their processes with."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gate_node.node import DEADLINE_SECONDS, ROOT, starter

CLIENT = """
import sys
sys.path[:0] = sys.argv[1:3]
from gate_node.node import starter
print(starter().start("pinwarden", ["holder", "--run-dir", sys.argv[3]]).pid, flush=True)
sys.stdin.read()
"""


def test_forked_process_is_pinwarden_with_its_exit_codes(tmp_path: Path) -> None:
    version = starter().start("pinwarden", ["--version"])
    assert version.stdout.read().startswith("pinwarden ")
    assert version.wait() == version.poll() == 0
    assert starter().start("pinwarden", ["gate", "--no-such-option"]).wait() == 2
    holder = starter().start("pinwarden", ["holder", "--run-dir", str(tmp_path)])
    with pytest.raises(subprocess.TimeoutExpired):
        holder.wait(0.01)
    holder.kill()
    assert holder.wait() == -signal.SIGKILL


def test_processes_of_a_killed_client_are_killed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        CLIENT,
        str(ROOT / "operator"),
        str(ROOT / "tools"),
        str(tmp_path),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        running = os.pidfd_open(int(client.stdout.readline()))
        client.kill()
        ended, _, _ = select.select([running], [], [], DEADLINE_SECONDS)
    os.close(running)
    assert ended
