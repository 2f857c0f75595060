"""Tables as kubectl prints them: padded columns, an upper-case head, `-` for a missing value."""

from collections.abc import Sequence


def render(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the table's lines, with `-` for None and for the empty text."""
    cells = [
        list(head),
        *([("-" if cell in (None, "") else str(cell)) for cell in row] for row in rows),
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = (
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "".join(line.rstrip() + "\n" for line in lines)
