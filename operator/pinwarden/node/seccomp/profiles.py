"""The seccomp profiles with the gate's listener, and their files on a node.

A gated call pins memory or maps shareable memory. `runtime_default.json` has containerd's rules for
RuntimeDefault. `make profiles` writes the file from containerd's source. The gated variant sends
each allowed gated call to the gate, and keeps all other rules. The variant for unconfined pods
allows all other calls.

If a call is gated for some arguments only, a second rule allows exactly the other arguments. In
libseccomp a rule without arguments would replace a rule with arguments. runc joins several
conditions on one argument by "or". So the second rule has bit patterns for all ungated arguments
(`complement`).

Both profiles list no architecture. A runtime then filters for the architecture of the machine. A
call of another architecture (32-bit, x32) ends its thread by SIGSYS.

The file of a profile never changes, because running pods refer to it. A change gets the next
version, and earlier files stay. The runtime sends `listenerMetadata` with the descriptor, so the
gate knows the version of each container's profile.

- v1: pinning calls.
- v2: also mappings of other processes' memory: `mmap` of a descriptor with MAP_SHARED, `shmat`,
  `remap_file_pages`. MAP_PRIVATE mappings are not sent, because each program start makes dozens.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pinwarden.node.seccomp.gated_calls import GATED, LISTENER_PATH, ArgumentCondition
from pinwarden.node.seccomp.patterns import BitPattern, complement

FOLDER: Final = "pinwarden"
VERSION: Final = 2
METADATA: Final = f"pinwarden-v{VERSION}"
_NOTIFY, _ALLOW = "SCMP_ACT_NOTIFY", "SCMP_ACT_ALLOW"


def runtime_default() -> dict[str, Any]:
    """Return containerd's profile RuntimeDefault, for the architecture of the machine."""
    text = resources.files(__package__).joinpath("runtime_default.json").read_text()
    content: dict[str, Any] = json.loads(text)
    return content


def profiles(listener: str = LISTENER_PATH) -> dict[str, dict[str, Any]]:
    """Return each profile (LinuxSeccomp of the OCI runtime specification) by its file's name.

    `listener` is a path on the node.
    """
    default = runtime_default()
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
    """Write missing profiles below the kubelet's seccomp folder, and return different existing
    files.

    Existing files stay unchanged. A file gets its name once it is complete and on disk. Raises
    OSError.
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
    """Create a file with read access for everyone, unless the file exists."""
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
    """Return the content of a profile's file."""
    return json.dumps(profile, indent=1).encode() + b"\n"


def _gate(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the runtime's rules, with rules of the gate for the allowed gated calls."""
    allowed = {
        name
        for rule in rules
        if rule["action"] == _ALLOW and not rule.get("args")
        for name in rule["names"]
    }
    gated_rules = []
    for rule in rules:
        gated = rule.get("args") and all(_is_gated(name, rule["args"]) for name in rule["names"])
        names = [name for name in rule["names"] if rule.get("args") or name not in GATED]
        if names:
            gated_rules.append({**rule, "names": names, **({"action": _NOTIFY} if gated else {})})
    for name, condition in GATED.items():
        if name in allowed:
            gated_rules.append(_notify(name, condition))
            if condition is not None:
                rest = complement(condition.patterns, condition.width)
                gated_rules.append(
                    {"names": [name], "action": _ALLOW, "args": _arguments(condition, rest)}
                )
    return gated_rules


def _is_gated(name: str, arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a rule of the runtime matches exactly one gated value."""
    condition = GATED.get(name)
    return condition is not None and any(
        (argument["index"], argument["op"], argument["value"])
        == (condition.argument, "SCMP_CMP_EQ", bits.value)
        for argument in arguments
        for bits in condition.patterns
    )


def _notify(name: str, condition: ArgumentCondition | None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": [name], "action": _NOTIFY}
    if condition is not None:
        rule["args"] = _arguments(condition, condition.patterns)
    return rule


def _arguments(
    condition: ArgumentCondition, patterns: Iterable[BitPattern]
) -> list[dict[str, Any]]:
    """Return conditions, which runc joins by "or". `value` is the mask, `valueTwo` the value."""
    return [
        {
            "index": condition.argument,
            "value": bits.mask,
            "valueTwo": bits.value,
            "op": "SCMP_CMP_MASKED_EQ",
        }
        for bits in patterns
    ]
