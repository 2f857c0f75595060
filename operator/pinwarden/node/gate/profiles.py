"""The seccomp profiles that send calls to the gate that pin memory, or map memory that can be shared: pure functions of the container
runtime's default rules, and their files.

`runtime_default.json` is what containerd itself gives a pod with RuntimeDefault (`make profiles` writes it anew from containerd's source).
In the gated variant of it each gated call that it allows is sent to the gate, and all else is as it was; in the variant for unconfined pods
all else is allowed. A call that is gated for some arguments only is allowed for exactly the others: libseccomp would let a rule without
arguments swallow one with. runc joins several conditions on one argument by "or", so the others are given as bit patterns that meet no
gated one (`complement`).

Both list no architecture. A runtime then filters for the machine's own, and a call in another one's way (32-bit, x32) ends its thread,
by SIGSYS.

A profile's file never changes: running pods refer to it. What changes gets the next version; files of earlier ones stay where they are.
The runtime passes `listenerMetadata` on with the descriptor, so that the gate knows which version a container has.

- v1: calls that pin.
- v2: also calls that map what another process can have mapped too: `mmap` with MAP_SHARED of a descriptor, `shmat`, `remap_file_pages`.
  MAP_PRIVATE mappings are not sent: every start of a program makes dozens.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

LISTENER_PATH: Final = "/run/pinwarden/seccomp.sock"
FOLDER: Final = "pinwarden"
VERSION: Final = 2
METADATA: Final = f"pinwarden-v{VERSION}"
_NOTIFY, _ALLOW = "SCMP_ACT_NOTIFY", "SCMP_ACT_ALLOW"


@dataclass(frozen=True, slots=True, order=True)
class BitPattern:
    """All numbers whose bits under `mask` are those of `value`."""

    mask: int
    value: int

    def meets(self, other: "BitPattern") -> bool:
        """Whether they have a number in common."""
        return not (self.value ^ other.value) & self.mask & other.mask


@dataclass(frozen=True, slots=True)
class ArgumentCondition:
    """The values of one argument for which a call is gated; only the lower `width` bits count."""

    argument: int
    width: int
    patterns: tuple[BitPattern, ...]


def _number(argument: int, *values: int, ignoring: int = 0) -> ArgumentCondition:
    """An argument that is an `int` of C."""
    mask = (1 << 32) - 1 & ~ignoring
    return ArgumentCondition(argument, 32, tuple(BitPattern(mask, value) for value in values))


def _type_byte(*values: int) -> ArgumentCondition:
    """The type byte of an ioctl's command (_IOC_TYPE)."""
    return ArgumentCondition(1, 32, tuple(BitPattern(0xFF00, value << 8) for value in values))


GATED: Final[Mapping[str, ArgumentCondition | None]] = {
    "mlock": None,
    "mlock2": None,
    "mlockall": None,
    "mremap": None,
    "memfd_secret": None,
    # MAP_LOCKED, MAP_GROWSDOWN, and MAP_SHARED or MAP_SHARED_VALIDATE without MAP_ANONYMOUS
    "mmap": ArgumentCondition(
        3, 32, (BitPattern(0x2000, 0x2000), BitPattern(0x100, 0x100), BitPattern(0x21, 0x01))
    ),
    "shmat": None,
    "remap_file_pages": None,
    "shmctl": _number(1, 11),  # SHM_LOCK
    "io_uring_setup": None,
    # IORING_REGISTER_BUFFERS, _BUFFERS2, _BUFFERS_UPDATE, _PBUF_RING, _ZCRX_IFQ, _RESIZE_RINGS and _MEM_REGION, also with
    # IORING_REGISTER_USE_REGISTERED_RING
    "io_uring_register": _number(1, 0, 15, 16, 22, 32, 33, 34, ignoring=1 << 31),
    "socket": _number(0, 44),  # AF_XDP
    "ioctl": _type_byte(0x3B, 0x1B, 0x75),  # VFIO and iommufd, RDMA, udmabuf
}
"""The gated calls, each with the condition on its arguments, or None for always."""


def complement(patterns: Iterable[BitPattern], width: int) -> list[BitPattern]:
    """Patterns that together are all numbers of `width` bits but those of `patterns`; no number is in two."""
    rest = [BitPattern(0, 0)]
    for taken in patterns:
        rest = [part for each in rest for part in _without(each, taken, width)]
    return sorted(rest)


def _without(whole: BitPattern, taken: BitPattern, width: int) -> list[BitPattern]:
    """`whole` without `taken`: for each bit that `taken` fixes and `whole` does not, what differs in it first."""
    if not whole.meets(taken):
        return [whole]
    parts = []
    mask, value = whole.mask, whole.value
    for bit in (1 << position for position in range(width - 1, -1, -1)):
        if taken.mask & bit and not whole.mask & bit:
            parts.append(BitPattern(mask | bit, value | (~taken.value & bit)))
            mask, value = mask | bit, value | (taken.value & bit)
    return parts


def profiles(listener: str = LISTENER_PATH) -> dict[str, dict[str, Any]]:
    """Each profile by the name of its file, as the OCI runtime specification's LinuxSeccomp; `listener` is a path on the node."""
    default = json.loads(resources.files(__package__).joinpath("runtime_default.json").read_text())
    return {
        f"runtime-default-v{VERSION}.json": {
            **default,
            "listenerPath": listener,
            "listenerMetadata": METADATA,
            "syscalls": _gate(default["syscalls"]),
        },
        f"unconfined-v{VERSION}.json": {
            "defaultAction": _ALLOW,
            "listenerPath": listener,
            "listenerMetadata": METADATA,
            "syscalls": [_notify(name, condition) for name, condition in GATED.items()],
        },
    }


def install(folder: Path) -> list[Path]:
    """Writes the profiles below the kubelet's seccomp folder where they are missing; returns those that are there and differ.

    These stay as they are. A file is whole and on disk before it has its name. Raises OSError.
    """
    folder = folder / FOLDER
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    differing = []
    for name, profile in profiles().items():
        path, data = folder / name, encode(profile)
        if not path.exists():
            _create(path, data)
        if path.read_bytes() != data:
            differing.append(path)
    return differing


def _create(path: Path, data: bytes) -> None:
    """Makes a file that everyone may read; one that came first stays."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as beside:
        beside.write(data)
        beside.flush()
        os.fchmod(beside.fileno(), 0o644)
        os.fsync(beside.fileno())
        with suppress(FileExistsError):
            os.link(beside.name, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def encode(profile: Mapping[str, Any]) -> bytes:
    """The content of a profile's file."""
    return json.dumps(profile, indent=1).encode() + b"\n"


def _gate(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runtime's rules with the gated calls taken out, and for those that they allow the gate's rules."""
    allowed = {
        name for rule in rules if rule["action"] == _ALLOW and not rule.get("args") for name in rule["names"]
    }
    found = []
    for rule in rules:
        gated = rule.get("args") and all(_is_gated(name, rule["args"]) for name in rule["names"])
        names = [name for name in rule["names"] if rule.get("args") or name not in GATED]
        if names:
            found.append({**rule, "names": names, **({"action": _NOTIFY} if gated else {})})
    for name, condition in GATED.items():
        if name in allowed:
            found.append(_notify(name, condition))
            if condition is not None:
                rest = complement(condition.patterns, condition.width)
                found.append({"names": [name], "action": _ALLOW, "args": _arguments(condition, rest)})
    return found


def _is_gated(name: str, arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a rule of the runtime's is for exactly one of the values for which a call is gated."""
    condition = GATED.get(name)
    return condition is not None and any(
        (each["index"], each["op"], each["value"]) == (condition.argument, "SCMP_CMP_EQ", bits.value)
        for each in arguments
        for bits in condition.patterns
    )


def _notify(name: str, condition: ArgumentCondition | None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": [name], "action": _NOTIFY}
    if condition is not None:
        rule["args"] = _arguments(condition, condition.patterns)
    return rule


def _arguments(condition: ArgumentCondition, patterns: Iterable[BitPattern]) -> list[dict[str, Any]]:
    """Conditions that runc joins by "or"; a single one stands for itself. `value` is the mask and `valueTwo` what is under it."""
    return [
        {
            "index": condition.argument,
            "value": bits.mask,
            "valueTwo": bits.value,
            "op": "SCMP_CMP_MASKED_EQ",
        }
        for bits in patterns
    ]
