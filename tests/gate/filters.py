"""Run a profile as the BPF program of libseccomp, and return its action for any call.

The input of the program is `struct seccomp_data` of seccomp(2).
"""

import operator
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gate_node.filters import export
from pinwarden.node.linux.syscalls import AUDIT_ARCH_X86_64

KILL_THREAD, ERRNO, NOTIFY, ALLOW = 0, 0x00050000, 0x7FC00000, 0x7FFF0000
_ACTION_BITS: Final = 0xFFFF0000
_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=IIQ6Q")
_WORD = struct.Struct("=I")
_LOAD, _LOAD_SAVED, _SAVE, _AND, _JUMP, _RETURN = 0x20, 0x60, 0x02, 0x54, 0x05, 0x06
_COMPARISONS: Final[Mapping[int, Callable[[int, int], int]]] = {
    0x15: operator.eq,
    0x25: operator.gt,
    0x35: operator.ge,
    0x45: operator.and_,
}


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions of classic BPF: code, jumps when true and when false, and a constant."""

    instructions: Sequence[tuple[int, int, int, int]]

    def answer(
        self, number: int, arguments: Sequence[int] = (), arch: int = AUDIT_ARCH_X86_64
    ) -> int:
        """Return the action without its errno. Raises ValueError at an unknown instruction."""
        data = _DATA.pack(number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
        accumulator, at = 0, 0
        saved: dict[int, int] = {}
        while True:
            code, when_true, when_false, constant = self.instructions[at]
            at += 1
            if holds := _COMPARISONS.get(code):
                at += when_true if holds(accumulator, constant) else when_false
            elif code == _LOAD:
                (accumulator,) = _WORD.unpack_from(data, constant)
            elif code == _RETURN:
                return constant & _ACTION_BITS
            elif code == _LOAD_SAVED:
                accumulator = saved[constant]
            elif code == _SAVE:
                saved[constant] = accumulator
            elif code == _AND:
                accumulator &= constant
            elif code == _JUMP:
                at += constant
            else:
                raise ValueError(f"instruction {code:#x}")


def program(profile: Mapping[str, Any]) -> Program:
    """What libseccomp makes of a profile on this machine."""
    reading, writing = os.pipe()
    parts: list[bytes] = []
    with open(reading, "rb") as file:
        reader = threading.Thread(target=lambda: parts.append(file.read()))
        reader.start()
        try:
            export(profile, writing)
        finally:
            os.close(writing)
            reader.join()
    return Program(list(_INSTRUCTION.iter_unpack(parts[0])))
