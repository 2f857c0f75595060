"""Damaged files: torn, empty, or of another version."""

import json
import random
from collections.abc import Mapping
from typing import Any

from fuzzing.text import words

_DEPTH = 100_000


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return the data after damage, or unrelated bytes."""
    match rng.randrange(8):
        case 0:
            return b""
        case 1:
            return data[: rng.randrange(len(data) + 1)]
        case 2:
            return rng.randbytes(rng.randrange(4096))
        case 3:
            return b"[" * _DEPTH + data
        case 4:
            at = rng.randrange(len(data) + 1)
            return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
        case 5:
            return data + data
        case 6:
            return bytes(len(data))
        case _:
            return json.dumps(altered(rng, _parsed(data))).encode()


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return {}


def altered(rng: random.Random, value: Any) -> Any:
    """Return the value with one part replaced, missing or doubled."""
    if isinstance(value, Mapping) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: altered(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], altered(rng, value[at]), *value[at:]]
    return strange(rng)


def strange(rng: random.Random) -> Any:
    """Return a value of any type."""
    return rng.choice(
        [
            None,
            True,
            -1,
            0,
            2**63,
            2**64,
            10**400,
            1.5,
            float("nan"),
            "",
            "\ud800",
            words(rng, 70),
            [],
            {},
            [[]],
            [None],
            {"": None},
            {"x": {"y": [1]}},
        ]
    )
