"""The cluster of ``make up``: it stands until ``make down``, in a process of its own that starts
dead guests again.

What others need to know of it is in a folder below the cache: ``pid`` of that process,
``kubeconfig``, and ``log``.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.build import binary
from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.install import install
from cluster.machine import Kind
from cluster.paths import cache_root

START_SECONDS = 1800.0
END_SECONDS = 30.0
WATCH_SECONDS = 1.0


def _folder() -> Path:
    return cache_root() / "standing"


def _pid() -> int | None:
    """The process that keeps the cluster, None when there is none; a number that another program
    has by now does not count.
    """
    try:
        pid = int((_folder() / "pid").read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if b"cluster" in arguments and b"stand" in arguments else None


def up(nodes: Sequence[Kind]) -> None:
    """Start a cluster with pinwarden installed, wait until it is ready, and print how to use it.

    Raises ClusterError when one stands already, or this one does not come up.
    """
    folder = _folder()
    if _pid() is not None:
        raise ClusterError(
            f"a cluster stands already: export KUBECONFIG={folder / 'kubeconfig'}, or `make down`"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "cluster", "stand", *nodes],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(keeper.pid))
    _wait(keeper, folder)
    programs = ":".join(str(binary(name).parent) for name in ("kubectl", "helm"))
    print(f"export KUBECONFIG={folder / 'kubeconfig'}\nexport PATH={programs}:$PATH")
    print(
        "`kubectl get pods -A` shows pinwarden running; `make down` ends it and leaves nothing "
        "behind."
    )


def _wait(keeper: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Pass on what the keeper says until the cluster is ready."""
    deadline = time.monotonic() + START_SECONDS
    with (folder / "log").open() as log:
        while not (folder / "kubeconfig").exists():
            sys.stderr.write(log.read())
            if keeper.poll() is not None or time.monotonic() > deadline:
                sys.stderr.write(log.read())
                raise ClusterError("the cluster did not come up")
            time.sleep(0.2)


def stand(nodes: Sequence[Kind]) -> None:
    """Keep a cluster until SIGTERM or SIGINT; what ``up`` starts."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    folder = _folder()
    with Cluster(nodes) as cluster:
        install(cluster.kubeconfig, len(cluster.nodes))
        draft = folder / "kubeconfig.new"
        shutil.copy(cluster.kubeconfig, draft)
        draft.rename(folder / "kubeconfig")
        while not ended.wait(WATCH_SECONDS):
            for node in cluster.nodes:
                node.revive()


def down() -> None:
    """End the standing cluster, if there is one. Raises ClusterError when it does not end."""
    pid = _pid()
    if pid is None:
        print("no cluster stands")
    else:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while _pid() is not None:
            if time.monotonic() > deadline:
                raise ClusterError(f"process {pid} did not end; its log is {_folder() / 'log'}")
            time.sleep(0.1)
    shutil.rmtree(_folder(), ignore_errors=True)
