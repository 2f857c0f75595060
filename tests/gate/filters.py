"""A profile as the BPF program that libseccomp makes of it, and what that answers to any call (seccomp(2), `struct seccomp_data`)."""

import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gated.filters import export
from pinwarden.agent.gates.seccomp.calls import AUDIT_ARCH_X86_64

KILL_THREAD, ERRNO, NOTIFY, ALLOW = 0, 0x00050000, 0x7FC00000, 0x7FFF0000
_ACTION_BITS: Final = 0xFFFF0000
_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=IIQ6Q")
_WORD = struct.Struct("=I")
_LOAD, _LOAD_SAVED, _SAVE, _AND, _JUMP, _RETURN = 0x20, 0x60, 0x02, 0x54, 0x05, 0x06
_EQUAL, _GREATER, _NOT_LESS, _ANY_BIT = 0x15, 0x25, 0x35, 0x45


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions of classic BPF: code, jumps when true and when false, and a constant."""

    instructions: Sequence[tuple[int, int, int, int]]

    def answer(self, number: int, arguments: Sequence[int] = (), arch: int = AUDIT_ARCH_X86_64) -> int:
        """The action, without its errno. Raises ValueError at an instruction that libseccomp is not known to use."""
        data = _DATA.pack(number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
        accumulator, at = 0, 0
        saved: dict[int, int] = {}
        while True:
            code, when_true, when_false, constant = self.instructions[at]
            at += 1
            match code:
                case c if c == _RETURN:
                    return constant & _ACTION_BITS
                case c if c == _LOAD:
                    (accumulator,) = _WORD.unpack_from(data, constant)
                case c if c == _LOAD_SAVED:
                    accumulator = saved[constant]
                case c if c == _SAVE:
                    saved[constant] = accumulator
                case c if c == _AND:
                    accumulator &= constant
                case c if c == _JUMP:
                    at += constant
                case _:
                    at += when_true if _holds(code, accumulator, constant) else when_false


def _holds(code: int, accumulator: int, constant: int) -> bool:
    match code:
        case c if c == _EQUAL:
            return accumulator == constant
        case c if c == _GREATER:
            return accumulator > constant
        case c if c == _NOT_LESS:
            return accumulator >= constant
        case c if c == _ANY_BIT:
            return bool(accumulator & constant)
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
