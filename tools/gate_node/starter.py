"""The fork server of node.py, for processes of containers and subcommands of pinwarden.

`container` replaces runc: it becomes the process of a container, and then the given program. A
Python program is read before the process changes its user, because that user may not be allowed to
read the interpreter's files. Any other program is executed.
"""

import ctypes  # noqa: F401 - imported before the fork for the programs
import json
import mmap  # noqa: F401
import os
import random  # noqa: F401
import signal  # noqa: F401
import socket
import struct  # noqa: F401
import sys
import threading  # noqa: F401
import time  # noqa: F401
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pinwarden.node.gate.daemon
import pinwarden.node.holder.daemon  # noqa: F401 - imported by `main` otherwise
from gate_node.filters import install, oci, policy
from gate_node.forks import serve
from pinwarden.cli.main import main
from pinwarden.node.seccomp.policy import ARCHITECTURES, gate
from pinwarden.node.seccomp.profiles import profiles, runtime_default


def container(settings: dict[str, Any]) -> None:
    """Become the process that the settings describe. Raises OSError."""
    with open(settings["procs"], "w") as file:
        file.write(str(os.getpid()))
    listener = install(_profile(settings["profile"]))
    message = json.dumps({**settings["state"], "pid": os.getpid()}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(settings["socket"])
        socket.send_fds(connection, [message], [listener])
    os.close(listener)
    program, *arguments = settings["argv"]
    code = compile(Path(program).read_text(), program, "exec") if program.endswith(".py") else None
    if settings["user"]:
        os.setgroups([])
        os.setresgid(*[settings["user"]] * 3)
        os.setresuid(*[settings["user"]] * 3)
    if code is None:
        os.execv(program, [program, *arguments])
    sys.argv[:] = [program, *arguments]
    exec(code, {"__name__": "__main__"})


def _profile(name: str) -> dict[str, Any]:
    """Return the profile whose name starts so, or with `merged-` the NRI plugin's policy."""
    if name == "merged-unconfined":
        return oci(gate(None, os.uname().machine))
    if name == "merged-runtime-default":
        own = policy(runtime_default(), ARCHITECTURES[os.uname().machine])
        return oci(gate(own, os.uname().machine))
    return next(content for file, content in profiles().items() if file.startswith(name))


FUNCTIONS: dict[str, Callable[..., int | None]] = {"container": container, "pinwarden": main}

if __name__ == "__main__":
    function, arguments = serve(int(sys.argv[1]))
    raise SystemExit(FUNCTIONS[function](*arguments))
