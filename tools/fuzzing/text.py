"""Names that programs, users and objects may choose."""

import random

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_NASTY = (
    "\n",
    "\t",
    "\\",
    '"',
    "'",
    " ",
    ")",
    "(",
    "%s",
    "{}",
    "\x1b[31m",
    "\x7f",
    "\u202e",
    "\u0301",
    "é",
    "名",
    "🧷",
    "\U0010ffff",
    "/",
    "..",
    ":",
    "=",
    "*",
    "[",
    " (deleted)",
    "\\040",
    "null",
    "true",
    "1e6",
    "-1",
)
_LINES = ("0::/kubepods/burstable", "PPid:\t1", "VmLck:\t0 kB", "0-1 rw-s 0 00:01 1 /memfd:x")


def words(rng: random.Random, most: int, least: int = 0) -> str:
    """Return `least` to `most` characters of any kind except surrogates, often exactly `most`."""
    length = rng.choice([least, most, most, rng.randint(least, most), min(most, least + 1)])
    match rng.randrange(4):
        case 0:
            return rng.choice(_LETTERS) * length
        case 1:
            return "".join(rng.choice(_LETTERS) for _ in range(length))
        case 2:
            text = "".join(rng.choice(_NASTY) for _ in range(length))
        case _:
            text = "".join(_character(rng) for _ in range(length))
    return text[:length]


def _character(rng: random.Random) -> str:
    point = rng.choice([rng.randrange(0x20), rng.randrange(0x250), rng.randrange(0x110000)])
    return chr(point) if not 0xD800 <= point < 0xE000 else "?"


def label(rng: random.Random, most: int = 63) -> str:
    """Return a name that Kubernetes accepts for a label's value or an object, often the longest."""
    length = rng.choice([1, most, most, rng.randint(1, most)])
    inner = "".join(rng.choice(f"{_LETTERS}-") for _ in range(length))
    return (rng.choice(_LETTERS[:26]) + inner)[: length - 1].rstrip("-") + rng.choice(_LETTERS[:26])


def bytes_of_name(rng: random.Random, most: int = 255) -> bytes:
    """Return bytes without a zero byte, often broken UTF-8."""
    length = rng.choice([1, 15, 16, most, most, rng.randint(1, most)])
    match rng.randrange(4):
        case 0:
            data = rng.randbytes(length)
        case 1:
            data = rng.choice(_LINES).encode() + b"\n" + words(rng, length, 1).encode()
        case 2:
            data = ("é名🧷" * length).encode()[rng.randrange(3) :]
        case _:
            data = words(rng, length, 1).encode()
    return data.replace(b"\0", b"?")[: min(length, most)] or b"x"


def file_name(rng: random.Random) -> bytes:
    """Return a name of a file: up to 255 bytes without a slash, neither `.` nor `..`."""
    name = bytes_of_name(rng).replace(b"/", b"|")
    return name if name not in (b".", b"..") else b"..."


def cgroup_name(rng: random.Random, pod: str, container: str) -> bytes:
    """Return a name of a cgroup: any name, or a name like a pod's or a container's."""
    other = "".join(rng.choice("0123456789abcdef") for _ in range(64))
    choices = [
        file_name(rng),
        file_name(rng),
        f"pod{pod}".encode(),
        container.encode(),
        other.encode(),
        f"crio-{other}".encode(),
        f"cri-containerd-{other}.scope".encode(),
        f"kubepods-burstable-pod{pod.replace('-', '_')}.slice".encode(),
        b"kubepods",
        b"kubepods.slice",
        b"burstable",
        b"cgroup.x",
    ]
    # the kernel rejects a line end in the name of a cgroup (cgroup_mkdir)
    return rng.choice(choices).replace(b"\n", b" ")
