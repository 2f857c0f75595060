"""Another program's listener for seccomp notifications: keeps the descriptors, answers nothing."""

import os
import socket

PATH = "/host/other/seccomp.sock"
if os.path.exists(PATH):
    os.unlink(PATH)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(PATH)
    listener.listen()
    print("listening", flush=True)
    kept = []
    while True:
        connection, _ = listener.accept()
        kept.append(socket.recv_fds(connection, 65536, 1))
