"""A process that creates, maps and unmaps shared memory on request; started by test_shared.py.

Each line is a Python expression over the functions below. The answer is its value, or `OSError
<number>`. With the argument `apart` the process has its own IPC namespace and /dev/shm, as a pod
has. With `volume=FOLDER` that folder is at its /dev/shm, as a volume would be.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

NEWNS, NEWIPC, MS_PRIVATE, MS_REC, MS_BIND = 0x20000, 0x8000000, 1 << 18, 1 << 14, 1 << 12
UDMABUF_CREATE, F_ADD_SEALS, F_SEAL_SHRINK, MFD_ALLOW_SEALING = 0x40187542, 1033, 2, 2
PIDFD_OPEN, PIDFD_GETFD = 434, 438
FALLOC_PUNCH_HOLE_KEEP_SIZE = 3
MAP_FIXED_NOREPLACE = 0x100000
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
sizes: dict[int, int] = {}
files: list[int] = []


def checked(result: int) -> int:
    if result in (-1, 2**64 - 1):
        raise OSError(ctypes.get_errno(), "")
    return result


def apart(volume: str = "") -> None:
    checked(libc.unshare(NEWNS | NEWIPC))
    checked(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    if volume:
        checked(libc.mount(volume.encode(), b"/dev/shm", None, MS_BIND, None))
    else:
        checked(libc.mount(b"shm", b"/dev/shm", b"tmpfs", 0, b"size=64m"))


def opened(path: str, size: int = 0) -> int:
    file = os.open(path, os.O_RDWR | (os.O_CREAT if size else 0), 0o666)
    if size:
        os.ftruncate(file, size)
    files.append(file)
    return file


def memfd(name: str, size: int) -> int:
    files.append(os.memfd_create(name, MFD_ALLOW_SEALING))
    os.ftruncate(files[-1], size)
    return files[-1]


def taken(pid: int, file: int) -> int:
    """A descriptor of another process, as if it had been handed over."""
    process = checked(libc.syscall(PIDFD_OPEN, pid, 0))
    files.append(checked(libc.syscall(PIDFD_GETFD, process, file, 0)))
    os.close(process)
    return files[-1]


def udmabuf(size: int) -> int:
    file = memfd("behind", size)
    fcntl.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK)
    device = os.open("/dev/udmabuf", os.O_RDWR)
    order = ctypes.create_string_buffer(struct.pack("=IIQQ", file, 1, 0, size))
    files.append(checked(libc.ioctl(device, UDMABUF_CREATE, order)))
    return files[-1]


def mapped(file: int, size: int, start: int = 0) -> int:
    """Map, at `start` unless 0, and return the address.

    Python's own mmap would keep a descriptor of the file, which counts as a use too.
    """
    flags = mmap.MAP_SHARED | (MAP_FIXED_NOREPLACE if start else 0)
    address = checked(libc.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, 0))
    sizes[address] = size
    return address


def touch(address: int, pages: int, write: bool = True) -> int:
    for page in range(pages):
        byte = ctypes.c_char.from_address(address + page * mmap.PAGESIZE)
        if write:
            byte.value = b"1"
        else:
            byte.value  # noqa: B018 - reads it
    return pages


def unmap(address: int) -> int:
    return checked(libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(sizes.pop(address))))


def close(file: int) -> int:
    os.close(file)
    return 0


def write(path: str, size: int) -> int:
    """Bytes that could be written to a new file."""
    return os.write(opened(path, 1), b"x" * size)


def segment(key: int, size: int) -> int:
    return checked(libc.shmget(key, ctypes.c_size_t(size), 0o1666))


def attach(number: int, pages: int) -> int:
    address = checked(libc.shmat(number, None, 0))
    touch(address, pages)
    return address


def detach(address: int) -> int:
    return checked(libc.shmdt(ctypes.c_void_p(address)))


def remove(number: int) -> int:
    return checked(libc.shmctl(number, 0, None))


def punch(file: int, offset: int, size: int) -> int:
    return checked(
        libc.fallocate(
            file, FALLOC_PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(size)
        )
    )


def unlink(path: str) -> int:
    os.unlink(path)
    return 0


for argument in sys.argv[1:]:
    if argument == "apart" or argument.startswith("volume="):
        apart(argument.removeprefix("apart").removeprefix("volume="))
    if argument.startswith("name="):
        checked(libc.prctl(15, argument.removeprefix("name=").encode(), 0, 0, 0))  # PR_SET_NAME
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except OSError as error:
        print(f"OSError {error.errno}", flush=True)
