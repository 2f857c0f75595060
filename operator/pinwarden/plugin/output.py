"""Print tables, JSON, YAML and ages like kubectl, with colours on a terminal.

On a terminal, a table fits the width: some columns become narrower and their cells are cut. With
`-o wide`, and outside a terminal, no cell is cut. Only a terminal gets colours, unless NO_COLOR is
set.
"""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from pinwarden.common.text import short

UNKNOWN: Final = "<unknown>"
_GAP: Final = "   "
_LEAST: Final = 8
_LINE: Final = 110
_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}
_OF_LEVELS: Final = {"Deny": "green", "Observe": "red"}

Row = Sequence[object]


def table(
    head: Sequence[str],
    rows: Sequence[Row],
    *,
    headers: bool = True,
    width: int | None = None,
    cut: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
) -> str:
    """Return lines without trailing spaces; None and empty texts are `-`.

    The columns `cut` become narrower until no line exceeds `width`. `colours` maps cells to
    colours.
    """
    cells = [["-" if cell in (None, "") else str(cell) for cell in row] for row in rows]
    shown = [list(head), *cells] if headers else cells
    if not shown:
        return ""
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    if width is not None:
        widths = _fitted(widths, width, [head.index(name) for name in cut])
    lines = []
    for number, row in enumerate(shown):
        paint = (colours or {}) if number or not headers else {}
        padded = (
            _painted(_cut(cell, size), size, paint) for cell, size in zip(row, widths, strict=True)
        )
        lines.append(_GAP.join(padded).rstrip() + "\n")
    return "".join(lines)


def _fitted(widths: Sequence[int], width: int, cut: Sequence[int]) -> list[int]:
    """Return the widths of the columns; the widest of `cut` shrinks until a line fits."""
    fitted = list(widths)
    excess = sum(fitted) + len(_GAP) * (len(fitted) - 1) - width
    while excess > 0 and (widest := max((fitted[column] for column in cut), default=0)) > _LEAST:
        fitted[next(column for column in cut if fitted[column] == widest)] -= 1
        excess -= 1
    return fitted


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def _painted(cell: str, width: int, colours: Mapping[str, str]) -> str:
    colour = colours.get(cell)
    return paint(cell, colour) + " " * (width - len(cell)) if colour else cell.ljust(width)


def paint(text: str, colour: str) -> str:
    """Return the text in a colour, if colours are enabled."""
    return f"\033[{_COLOURS[colour]}m{text}\033[0m" if has_colour() else text


def has_colour() -> bool:
    """Return whether colours are enabled (no-color.org)."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def level_colours() -> Mapping[str, str]:
    """Return the colours of levels."""
    return _OF_LEVELS if has_colour() else {}


def terminal_width() -> int | None:
    """Return the width of the terminal, None without a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def paragraph(text: str, indent: str = "") -> str:
    """Return the text in lines of readable width."""
    width = min(terminal_width() or _LINE, _LINE)
    return (
        textwrap.fill(
            text,
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
    )


def emit(value: Any, form: str) -> None:
    """Print JSON or YAML like kubectl."""
    if form == "json":
        sys.stdout.write(json.dumps(value, indent=4) + "\n")
    else:
        sys.stdout.write(to_yaml(value))


def to_yaml(value: Any) -> str:
    """Return YAML with the keys in their order."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))


def items(values: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return several values as one object."""
    return {"items": list(values)}


def amount(value: int | None, absent: str | None = None) -> str | None:
    """Return an amount of bytes with a unit."""
    return absent if value is None else short(value)


def age(time: datetime | None, now: datetime) -> str | None:
    """Return an age like kubectl: `45s`, `3m`, `2h`, `5d`."""
    if time is None:
        return None
    seconds = max(0, int((now - time) / timedelta(seconds=1)))
    if seconds < 120:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 120:
        return f"{minutes}m"
    return f"{hours}h" if hours < 48 else f"{days}d"


def sampled(time: datetime | None, now: datetime, *, stale: bool) -> str | None:
    """Return the age of figures, marked if they are stale."""
    text = age(time, now)
    return f"{text} (stale)" if text and stale else text


def remark(text: str) -> None:
    """Print a remark to standard error; programs can still parse standard output."""
    sys.stderr.write(f"{text}\n")
