"""The ioctls of a listener, over a kernel that a signal interrupts."""

import ctypes
import errno
import os
from types import SimpleNamespace

import pytest

from pinwarden.node.linux import seccomp_notify
from pinwarden.node.linux.seccomp_notify import Listener


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Return a listener with every second ioctl interrupted by a signal."""
    calls: list[int] = []

    def ioctl(descriptor: int, request: int, argument: object) -> int:
        calls.append(request)
        ctypes.set_errno(errno.EINTR)
        return -(len(calls) % 2)

    monkeypatch.setattr(seccomp_notify, "libc", SimpleNamespace(ioctl=ioctl))
    return Listener(os.open(os.devnull, os.O_RDONLY))


@pytest.mark.rule("P5")
def test_interrupted_ioctl_is_repeated(listener: Listener) -> None:
    assert listener.is_valid(7)
    assert listener.continue_(7)
    assert listener.fail(7, errno.ENOMEM)
    assert listener.receive(0)
    listener.close()
