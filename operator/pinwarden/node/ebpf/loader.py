"""Loading and attaching BPF programs, by libbpf 1.x through ctypes.

libbpf adapts one object to the running kernel (CO-RE): it relocates the offsets of fields, and
looks up the function of each program in the kernel's BTF. A program whose function this kernel
lacks is left out, and so is a refused one. Everything ends with the process: the
kernel detaches and unloads a program when the last descriptor of its link is closed.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from ctypes import c_bool, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pinwarden.node.linux import bpf

LIBRARY: Final = "libbpf.so.1"
OBJECTS: Final = Path(__file__).parent
"""The folder of the package's object files."""
VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
_LOG_BYTES: Final = 1 << 24
"""The most of one verifier's log. With a longer log the load fails with ENOSPC, not with its cause,
and before Linux 6.4 without the end of the log.
"""
_LOG_END_BYTES: Final = 8192
_MAP_NORESERVE: Final = 0x4000
_LOG_LINES: Final = 12
_TEXT_BYTES: Final = 256
_ENOTSUPP: Final = 524  # include/linux/errno.h
_NOT_SUPPORTED: Final = "this kernel cannot attach programs to functions"
_RIGHTS: Final = "needs CAP_BPF and CAP_PERFMON, and a kernel without lockdown=confidentiality"
_PREFIXES: Final = {"lsm": "bpf_lsm_", "lsm.s": "bpf_lsm_", "tp_btf": "btf_trace_"}
"""How the kernel's BTF names the target of a section, if it is not the function itself."""


class BpfError(Exception):
    """Programs cannot be loaded or attached. The message names the cause."""


class BpfObject:
    """The programs and maps of an object file, loaded in a ``with`` block.

    Kernels differ, and a misfit must not stop the other programs. `left_out` has the
    names of the programs without an attachment, each with the reason: a few lines.
    """

    def __init__(self, path: Path) -> None:
        """Open a file. Raises BpfError."""
        if not path.exists():
            raise BpfError(f"{path} does not exist: `make bpf` compiles it into a source tree")
        if not VMLINUX.exists():
            raise BpfError(f"the kernel has no BTF at {VMLINUX}: it needs CONFIG_DEBUG_INFO_BTF")
        self._library = _library()
        self._path = path
        self._links: list[int] = []
        self._programs: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        self._object = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Detach and unload the programs, and close the maps."""
        for link in self._links:
            self._library.bpf_link__destroy(link)
        self._library.bpf_object__close(self._object)

    def load(self) -> None:
        """Load the programs. Leave out those without a target in this kernel, and refused ones.

        Call it once. Raises BpfError with the verifier's log if no program is left, and if the
        kernel refuses all of them, such as without a capability.
        """
        while True:
            logs = self._prepare()
            if self._library.bpf_object__load(self._object) >= 0:
                break
            refused = dict(_refusals(logs))
            if not refused or refused.keys() == logs.keys():
                raise _failure(f"cannot load {self._path.name}", *_lines(refused))
            self.left_out |= refused
            failed, self._object = self._object, self._open()
            self._library.bpf_object__close(failed)
        for program in self._programs.values():
            self._library.bpf_program__set_log_buf(program, None, 0)

    def attach(self) -> None:
        """Attach the loaded programs. Raises BpfError if none can be attached."""
        for name, program in self._programs.items():
            link = self._library.bpf_program__attach(program)
            if link:
                self._links.append(link)
            else:
                failure = _failure(f"cannot attach program {name} to {self._section(program)}")
                self.left_out[name] = str(failure)
                if len(self._programs.keys() - self.left_out.keys()) == 0:
                    raise failure

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map, valid in the ``with`` block. Raises BpfError."""
        descriptor: int = self._library.bpf_object__find_map_fd_by_name(self._object, name.encode())
        if descriptor < 0:
            raise _failure(f"{self._path.name} has no map {name}")
        return descriptor

    def recursion_misses(self) -> int:
        """Return how often the kernel skipped a loaded program, because a program ran already.

        Raises OSError.
        """
        return sum(
            bpf.recursion_misses(self._library.bpf_program__fd(program))
            for program in self._programs.values()
        )

    def _set_page_size(self) -> None:
        """Set `page_size`, the only constant of an object that has one. Raises BpfError."""
        section = self._library.bpf_object__find_map_by_name(self._object, b".rodata")
        if not section:
            return
        size = c_size_t()
        value = self._library.bpf_map__initial_value(section, ctypes.byref(size))
        if not value or size.value != ctypes.sizeof(ctypes.c_uint64):
            raise BpfError(f"{self._path.name} has other constants than page_size")
        ctypes.c_uint64.from_address(value).value = mmap.PAGESIZE

    def _open(self) -> int:
        """Return the object of the file. Raises BpfError."""
        opened: int | None = self._library.bpf_object__open_file(os.fsencode(self._path), None)
        if not opened:
            raise _failure(f"cannot open {self._path}")
        return opened

    def _prepare(self) -> dict[str, mmap.mmap]:
        """Choose the programs, and return the memory for the log of each. Raises BpfError."""
        self._set_page_size()
        programs = {
            self._library.bpf_program__name(program).decode(): program
            for program in self._all_programs()
        }
        missing = self._missing({self._section(program) for program in programs.values()})
        logs: dict[str, mmap.mmap] = {}
        self._programs = {}
        for name, program in programs.items():
            section = self._section(program)
            if section in missing:
                self.left_out[name] = f"this kernel has no {section.partition('/')[2]}"
            if name in self.left_out:
                self._library.bpf_program__set_autoload(program, False)
                continue
            self._programs[name] = program
            logs[name] = _log_buffer()
            address = ctypes.addressof(ctypes.c_char.from_buffer(logs[name]))
            self._library.bpf_program__set_log_buf(program, address, _LOG_BYTES)
        return logs

    def _section(self, program: int) -> str:
        section: bytes = self._library.bpf_program__section_name(program)
        return section.decode()

    def _all_programs(self) -> Iterator[int]:
        program = self._library.bpf_object__next_program(self._object, None)
        while program:
            yield program
            program = self._library.bpf_object__next_program(self._object, program)

    def _missing(self, sections: set[str]) -> set[str]:
        """Return the sections whose target the kernel's BTF lacks. Raises BpfError."""
        types = self._library.btf__load_vmlinux_btf()
        if not types:
            raise _failure(f"cannot read {VMLINUX}")
        try:
            return {
                section
                for section in sections
                if self._library.btf__find_by_name(types, _btf_name(section).encode()) < 0
            }
        finally:
            self._library.btf__free(types)


def _btf_name(section: str) -> str:
    kind, _, target = section.partition("/")
    return _PREFIXES.get(kind, "") + target


def _log_buffer() -> mmap.mmap:
    """Return memory for one log. The kernel writes only the pages that the log has."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return mmap.mmap(-1, _LOG_BYTES, flags=flags)


def _refusals(logs: Mapping[str, mmap.mmap]) -> Iterator[tuple[str, str]]:
    """Yield the name of each refused program, and the end of the verifier's log."""
    for name, log in logs.items():
        length = log.find(b"\0")
        end = log[max(0, length - _LOG_END_BYTES) : length]
        if lines := end.decode(errors="replace").splitlines():
            yield name, "\n".join(lines[-_LOG_LINES:])


def _lines(refused: Mapping[str, str]) -> Iterator[str]:
    for name, log in refused.items():
        yield from (f"program {name}:", log)


def _failure(failed: str, *lines: str) -> BpfError:
    """Return the exception for the current errno, with further lines."""
    number = ctypes.get_errno()
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    _library().libbpf_strerror(number, text, _TEXT_BYTES)
    why = _NOT_SUPPORTED if number == _ENOTSUPP else text.value.decode(errors="replace")
    if number in (errno.EPERM, errno.EACCES) and not lines:
        why = f"{why}: it {_RIGHTS}"
    return BpfError("\n".join([f"{failed}: {why}", *lines]))


@cache
def _library() -> Any:
    """Return libbpf with prototypes, silent: its messages come with the exceptions."""
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise BpfError(f"cannot load libbpf 1.x: {error}") from error
    prototypes: dict[str, tuple[Any, ...]] = {
        "libbpf_set_print": (c_void_p, c_void_p),
        "libbpf_strerror": (c_int, c_int, c_char_p, c_size_t),
        "bpf_object__open_file": (c_void_p, c_char_p, c_void_p),
        "bpf_object__load": (c_int, c_void_p),
        "bpf_object__close": (None, c_void_p),
        "bpf_object__next_program": (c_void_p, c_void_p, c_void_p),
        "bpf_object__find_map_fd_by_name": (c_int, c_void_p, c_char_p),
        "bpf_object__find_map_by_name": (c_void_p, c_void_p, c_char_p),
        "bpf_map__initial_value": (c_void_p, c_void_p, c_void_p),
        "bpf_program__name": (c_char_p, c_void_p),
        "bpf_program__section_name": (c_char_p, c_void_p),
        "bpf_program__fd": (c_int, c_void_p),
        "bpf_program__set_autoload": (c_int, c_void_p, c_bool),
        "bpf_program__set_log_buf": (c_int, c_void_p, c_void_p, c_size_t),
        "bpf_program__attach": (c_void_p, c_void_p),
        "bpf_link__destroy": (c_int, c_void_p),
        "btf__load_vmlinux_btf": (c_void_p,),
        "btf__find_by_name": (c_int, c_void_p, c_char_p),
        "btf__free": (None, c_void_p),
    }
    for name, (result, *arguments) in prototypes.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(None)
    return library
