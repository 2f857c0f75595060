"""Misspelled amounts, and the correct spelling.

The API server answers with these sentences (CEL), and every other reader of an amount too (Python).
The patterns use only what RE2 and `re` have in common.
"""

import re
from typing import Final, NamedTuple

GENERIC: Final = "must be a number of bytes with a suffix such as Ki, Mi or Gi, or none"
NEGATIVE: Final = (
    "must not be negative: give a whole number of bytes, 0 or more; to limit nothing, set no limit"
)
LARGE: Final = "must be at most 4Pi, the range of a physical address of 52 bits"
SMALL: Final = "must be 0 or at least a page (4Ki): use a suffix such as Ki, Mi or Gi"
_NUMBER: Final = r"[0-9]+[.]?[0-9]*|[.][0-9]+"
_LETTER: Final = "[A-Za-z]"
_EITHER: Final = "write {number}{decimal} (powers of 1000) or {number}{letter}i (powers of 1024)"


class Misspelling(NamedTuple):
    """A pattern of misspelled amounts, and the answer with parts of the text in braces."""

    pattern: str
    answer: str


MISSPELLINGS: Final = (
    Misspelling("^ | $", "write the amount without spaces"),
    Misspelling(rf"^[+]?({_NUMBER}) *[kKmMgGtTpP][iI][bB]?$", "write {number}{letter}i"),
    Misspelling(rf"^[+]?({_NUMBER}) *[kKmMgGtTpP][bB]?$", _EITHER),
    Misspelling(rf"^[+]?({_NUMBER}) *([bB]|[bB]ytes?)$", "write {number}"),
    Misspelling(
        r"^[0-9]+([_,][0-9]+)+",
        "write the number without commas and underscores, with a point for fractions",
    ),
    Misspelling(
        r"^0[xXoObB][0-9a-fA-F]+$",
        "write the number in decimal; YAML takes hexadecimal without quotes",
    ),
    Misspelling(
        r"^[-]?(unlimited|Unlimited|infinity|Infinity|inf|max|none|None)$",
        "write a number; to limit nothing, set no limit; 0 forbids",
    ),
)
"""The first matching pattern gives the answer; a text without a match gets `GENERIC`."""
THOUSANDTH: Final = Misspelling("m$", f"m is a thousandth: {_EITHER}")


def explain(text: str) -> str:
    """Return the answer to a text that is not a quantity."""
    return next(
        (
            _fill(misspelling.answer, text)
            for misspelling in MISSPELLINGS
            if re.search(misspelling.pattern, text)
        ),
        GENERIC,
    )


def explain_small(text: str) -> str:
    """Return the answer to an amount below a page, which would act as 0."""
    return _fill(THOUSANDTH.answer, text) if re.search(THOUSANDTH.pattern, text) else SMALL


def cel_explain(text: str) -> str:
    """Return `explain` as a CEL expression over the expression `text`."""
    answer = f"'{GENERIC}'"
    for misspelling in reversed(MISSPELLINGS):
        correct = _cel(misspelling.answer, text)
        answer = f"{text}.matches(r'{misspelling.pattern}') ? {correct} : ({answer})"
    return answer


def cel_explain_small(text: str) -> str:
    """Return `explain_small` as a CEL expression over the expression `text`."""
    return f"{text}.matches(r'{THOUSANDTH.pattern}') ? {_cel(THOUSANDTH.answer, text)} : '{SMALL}'"


def _fill(answer: str, text: str) -> str:
    number, letter = re.search(_NUMBER, text), re.search(_LETTER, text)
    upper = letter[0].upper() if letter else ""
    return answer.format(
        number=number[0] if number else "", letter=upper, decimal=upper.replace("K", "k")
    )


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
