"""Stands for runc: makes itself a container's process, and goes on as the program that it is told; started by node.py.

A Python program is read before the process becomes its user, who may not be allowed to read the interpreter's own files; another program is
executed.
"""

import ctypes  # noqa: F401 - what programs import is read before the user changes
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
from pathlib import Path

from gated.filters import install
from pinwarden.agent.gates.seccomp.profiles import profiles

settings = json.loads(sys.argv[1])
with open(settings["procs"], "w") as file:
    file.write(str(os.getpid()))
profile = next(
    content for name, content in profiles(settings["socket"]).items() if name.startswith(settings["profile"])
)
listener = install(profile)
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
