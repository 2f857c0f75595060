"""Values within an OpenAPI schema of a CRD, mostly at its edges."""

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from fuzzing.text import label, words

Schema = Mapping[str, Any]
Hint = Callable[[random.Random], Any]
_ITEMS = 4
_LENGTH = 300
_LARGEST = 2**63 - 1
_QUANTITIES = (
    "0",
    "4096",
    "64Ki",
    "1Mi",
    "1.5Gi",
    "4Pi",
    "1e6",
    "100M",
    "8Ei",
    "-1",
    "0.5",
    "1k",
    "12E",
)
_TIMES = (
    "2026-01-01T00:00:00Z",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z",
)
_EXAMPLES = (
    "a",
    "app.kubernetes.io/name",
    "web-1",
    "x" * 63,
    "/srv/x",
    "/srv/名/x y",
    "ring*",
    "0",
)


class Values:
    """Values of one seed. `hints` has functions for fields by name, for more useful values."""

    def __init__(self, rng: random.Random, hints: Mapping[str, Hint] | None = None) -> None:
        self._rng = rng
        self._hints = hints or {}

    def value(self, schema: Schema, name: str = "") -> Any:
        """Return a value of the schema for the field `name`; it may break CEL rules."""
        rng = self._rng
        if name in self._hints and rng.random() < 0.95:
            return self._hints[name](rng)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            return rng.choice([rng.choice(_QUANTITIES), rng.choice([0, 1, 4096, 2**40])])
        match schema.get("type"):
            case "object":
                return self._object(schema)
            case "array":
                return [self.value(schema["items"]) for _ in range(self._count(schema))]
            case "integer":
                low, high = schema.get("minimum", -_LARGEST), schema.get("maximum", _LARGEST)
                return rng.choice(
                    [low, high, max(low, 0), min(max(low, 4096), high), rng.randint(low, high)]
                )
            case "number":
                return rng.choice([schema.get("minimum", -1.5), 0.5, schema.get("maximum", 1e300)])
            case "boolean":
                return rng.random() < 0.5
            case "string":
                return self._string(schema)
        return {}

    def _object(self, schema: Schema) -> dict[str, Any]:
        rng, required = self._rng, set(schema.get("required", ()))
        fields = {
            name: self.value(part, name)
            for name, part in schema.get("properties", {}).items()
            if name in required or rng.random() < 0.5
        }
        if more := schema.get("additionalProperties"):
            fields |= {label(rng): self.value(more) for _ in range(rng.randrange(_ITEMS))}
        return fields

    def _count(self, schema: Schema) -> int:
        low = schema.get("minItems", 0)
        return self._rng.randint(low, max(low, min(schema.get("maxItems", _ITEMS), _ITEMS)))

    def _string(self, schema: Schema) -> str:
        rng = self._rng
        if schema.get("format") == "date-time":
            return rng.choice(_TIMES)
        least, most = schema.get("minLength", 0), schema.get("maxLength", _LENGTH)
        if (pattern := schema.get("pattern")) is None:
            return words(rng, most, least)
        made = [words(rng, min(most, 80), least), label(rng, min(most, 63)), *_EXAMPLES]
        fitting = [text for text in made if least <= len(text) <= most and re.search(pattern, text)]
        return rng.choice(fitting or ["a"])
