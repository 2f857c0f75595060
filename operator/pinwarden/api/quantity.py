"""Resource quantities, parsed exactly as Kubernetes parses them.

A quantity has its original text, so that reading and writing a resource loses nothing, and its
exact value. The grammar is that of `k8s.io/apimachinery/pkg/api/resource` (`ParseQuantity`):

    quantity = sign? number suffix?      number = digits | digits "." digits? | "." digits
    suffix   = "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | ... | "Ei"
             | ("e" | "E") sign? digits

As in Kubernetes, `E` alone is the suffix exa, and `E` before a number is an exponent. Values finer
than nano are rounded away from zero. A value with a binary suffix is capped at 2^63 - 1. At least
one digit is required, as in the OpenAPI pattern of the API server.
"""

import math
import re
from fractions import Fraction
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from pinwarden.api import spelling
from pinwarden.api.cel import cel

MAX_INT64: Final = 2**63 - 1
MAX_BYTES: Final = 2**52
_PATTERN: Final = (
    r"^[+-]?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$"
)
_PAGE: Final = 4096
_NANO: Final = Fraction(1, 10**9)
_GRAMMAR: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<number>[0-9]+\.?[0-9]*|\.[0-9]+)"
    r"(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE](?P<exponent>[+-]?[0-9]+))?"
)
_FACTORS: Final[dict[str, Fraction]] = (
    {
        "": Fraction(1),
        "n": _NANO,
        "u": Fraction(1, 10**6),
        "m": Fraction(1, 10**3),
        "k": Fraction(10**3),
    }
    | {letter: Fraction(10 ** (3 * power)) for power, letter in enumerate("MGTPE", start=2)}
    | {letter + "i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)}
)
_MAX_EXPONENT_DIGITS: Final = 4


class Quantity(str):
    """The text of a quantity with its value.

    Two quantities are equal if their texts are equal. Compare `value` to compare amounts.
    """

    __slots__ = ("value",)
    value: Fraction

    def __new__(cls, text: str | int) -> "Quantity":
        """Parse `text`, or an int as Kubernetes parses a JSON number.

        Raises:
            ValueError: the text is not a quantity.
        """
        quantity = super().__new__(cls, str(text))
        quantity.value = _parse(str(text))
        return quantity

    @property
    def bytes(self) -> int:
        """The value in whole bytes, rounded down: a sum of whole bytes exceeds both or none.

        Raises:
            ValueError: the value is negative, or a value below a page is written in thousandths
                or has a fraction of a byte.
        """
        if self.value < 0:
            raise ValueError(f"{self!s} {spelling.NEGATIVE}")
        if 0 < self.value < _PAGE and (self.value.denominator != 1 or self.endswith("m")):
            raise ValueError(f"{self!s}: {spelling.explain_small(self)}")
        return math.floor(self.value)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Accept an int or a string, and serialize the unchanged text."""
        return core_schema.no_info_plain_validator_function(
            _from_json, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the structural schema of a number of bytes: 0, or from a page up to `MAX_BYTES`.

        The grammar is part of a rule, not a `pattern`, so that the error for 64MB says the correct
        spelling. CEL's `isQuantity` accepts a suffix without a number. An amount above 0 and below
        the smallest page acts as 0, so it is an error. All this is one rule, because the server
        repeats its error for a JSON float for each rule.
        """
        text = "string(self)"
        value = f"quantity({text})"
        spelled = f"isQuantity({text}) && {text}.matches(r'{_PATTERN}')"
        negative, large = (
            f"{value}.isLessThan(quantity('0'))",
            f"{value}.isGreaterThan(quantity('{MAX_BYTES}'))",
        )
        fits = f"!{value}.isLessThan(quantity('{_PAGE}')) || {value}.compareTo(quantity('0')) == 0"
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-kubernetes-validations": [
                cel(
                    f"{spelled} && !{negative} && !{large} && ({fits})",
                    spelling.GENERIC,
                    expression=f"!({spelled}) ? ({spelling.cel_explain(text)}) : "
                    f"{negative} ? '{spelling.NEGATIVE}' : "
                    f"{large} ? '{spelling.LARGE}' : "
                    f"({spelling.cel_explain_small(text)})",
                )
            ],
        }


def _from_json(value: object) -> Quantity:
    if isinstance(value, Quantity):
        return value
    if isinstance(value, float) and value.is_integer():
        return Quantity(int(value))
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("a quantity is a string such as 64Mi, or a whole number")
    return Quantity(value)


def _parse(text: str) -> Fraction:
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity: {spelling.explain(text)}")
    exponent = match["exponent"]
    if exponent is None:
        factor = _FACTORS[match["suffix"] or ""]
    elif len(exponent.lstrip("+-").lstrip("0")) > _MAX_EXPONENT_DIGITS:
        raise ValueError(f"{text!r} is not a quantity: its exponent is out of range")
    else:
        factor = Fraction(10) ** int(exponent)
    magnitude = Fraction(match["number"].rstrip(".")) * factor
    magnitude = math.ceil(magnitude / _NANO) * _NANO
    if (match["suffix"] or "").endswith("i"):
        magnitude = min(magnitude, Fraction(MAX_INT64))
    return -magnitude if match["sign"] == "-" else magnitude
