"""Slips in the spelling of an amount, and the spelling that works.

The API server answers with these sentences (CEL) and so does every other place that reads an amount (Python): one table, two languages.
Patterns are in the common part of RE2 and `re`.
"""

import re
from typing import Final, NamedTuple

GENERIC: Final = "must be a number of bytes with a suffix such as Ki, Mi or Gi, or none"
NEGATIVE: Final = (
    "must not be negative: give a whole number of bytes, 0 or more; to limit nothing, set no limit"
)
SMALL: Final = "must be 0 or at least a page (4Ki): use a suffix such as Ki, Mi or Gi"
_NUMBER: Final = r"[0-9]+[.]?[0-9]*|[.][0-9]+"
_LETTER: Final = "[A-Za-z]"
_EITHER: Final = "write {number}{decimal} (powers of 1000) or {number}{letter}i (powers of 1024)"


class Slip(NamedTuple):
    """Spellings that match `pattern`, and the answer: `{number}`, `{letter}` (upper case) and `{decimal}` stand for parts of the text."""

    pattern: str
    answer: str


SLIPS: Final = (
    Slip("^ | $", "write the amount without spaces"),
    Slip(rf"^[+]?({_NUMBER}) *[kKmMgGtTpP][iI][bB]?$", "write {number}{letter}i"),
    Slip(rf"^[+]?({_NUMBER}) *[kKmMgGtTpP][bB]?$", _EITHER),
    Slip(rf"^[+]?({_NUMBER}) *([bB]|[bB]ytes?)$", "write {number}"),
    Slip(
        r"^[0-9]+([_,][0-9]+)+", "write the number without commas and underscores, with a point for fractions"
    ),
    Slip(r"^0[xXoObB][0-9a-fA-F]+$", "write the number in decimal; YAML takes hexadecimal without quotes"),
    Slip(
        r"^[-]?(unlimited|Unlimited|infinity|Infinity|inf|max|none|None)$",
        "write a number; to limit nothing, set no limit; 0 forbids",
    ),
)
"""The first that matches is the answer; texts that match none get `GENERIC`."""
THOUSANDTH: Final = Slip("m$", f"m is a thousandth: {_EITHER}")


def explain(text: str) -> str:
    """Return the answer to a text that is no quantity."""
    return next((_fill(slip.answer, text) for slip in SLIPS if re.search(slip.pattern, text)), GENERIC)


def explain_small(text: str) -> str:
    """Return the answer to an amount below a page, which acts as 0: nobody means that."""
    return _fill(THOUSANDTH.answer, text) if re.search(THOUSANDTH.pattern, text) else SMALL


def cel_explain(text: str) -> str:
    """Return `explain` as a CEL expression over the expression `text`."""
    answer = f"'{GENERIC}'"
    for slip in reversed(SLIPS):
        answer = f"{text}.matches(r'{slip.pattern}') ? {_cel(slip.answer, text)} : ({answer})"
    return answer


def cel_explain_small(text: str) -> str:
    """Return `explain_small` as a CEL expression over the expression `text`."""
    return f"{text}.matches(r'{THOUSANDTH.pattern}') ? {_cel(THOUSANDTH.answer, text)} : '{SMALL}'"


def _fill(answer: str, text: str) -> str:
    number, letter = re.search(_NUMBER, text), re.search(_LETTER, text)
    upper = letter[0].upper() if letter else ""
    return answer.format(number=number[0] if number else "", letter=upper, decimal=upper.replace("K", "k"))


def _cel(answer: str, text: str) -> str:
    letter = f"{text}.find('{_LETTER}').upperAscii()"
    parts = {
        "number": f"{text}.find(r'{_NUMBER}')",
        "letter": letter,
        "decimal": f"{letter}.replace('K', 'k')",
    }
    pieces = re.split(r"{(\w+)}", answer)
    return " + ".join(
        parts[piece] if place % 2 else f"'{piece}'" for place, piece in enumerate(pieces) if piece
    )
