"""Draw a dashboard for the docs as one SVG file, from answers of a Prometheus, without Grafana."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from monitoring.grafana import COLUMNS, Dashboard, Panel, Place, Row, Unit, layout
from monitoring.prometheus import Series

Answer = Sequence[tuple[str, Series]]
"""The series of all queries of a panel, each with its legend."""

_WIDTH: Final = 1320
_UNIT: Final = 26
_COLORS: Final = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#72b7b2",
    "#b279a2",
    "#9d755d",
    "#eeca3b",
    "#ff9da6",
    "#79706e",
)
_LEGEND: Final = 4
_ROWS: Final = 7
_KEPT: Final = 42


def legend(template: str, labels: Mapping[str, str]) -> str:
    """Return the legend of a series: `{{name}}` stands for the value of a label."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), template)


def number(value: float, unit: Unit) -> str:
    """Return a value with its unit."""
    if unit == "bytes":
        for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    return f"{value:.3g}{ {'s': ' s', 'ops': '/s'}.get(unit, '') }"


def draw(board: Dashboard, answers: Mapping[Panel, Answer], start: float, end: float) -> str:
    """Return the SVG; times are Unix times, shown as seconds since `start`."""
    placed = list(layout(board.rows))
    height = max(place.y + place.height for _, place in placed) * _UNIT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#f4f5f5"/>',
    ]
    for element, place in placed:
        x, y, width, tall = _box(place)
        if isinstance(element, Row):
            parts.append(
                f'<text x="{x + 6}" y="{y + 18}" font-size="14" font-weight="bold">'
                f"{escape(element.title)}</text>"
            )
        else:
            parts.append(f'<g transform="translate({x + 3},{y + 3})">')
            parts.append(
                f'<rect width="{width - 6}" height="{tall - 6}" fill="white" stroke="#d8d9da"/>'
            )
            parts.append(f'<text x="8" y="16" font-weight="bold">{escape(element.title)}</text>')
            parts += _content(element, answers.get(element, ()), width - 6, tall - 6, start, end)
            parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(place: Place) -> tuple[int, int, int, int]:
    column = _WIDTH // COLUMNS
    return place.x * column, place.y * _UNIT, place.width * column, place.height * _UNIT


def _content(
    panel: Panel, answer: Answer, width: int, height: int, start: float, end: float
) -> Iterator[str]:
    if not answer:
        yield (
            f'<text x="{width / 2}" y="{height / 2}" text-anchor="middle" fill="#888">no '
            "data</text>"
        )
    elif panel.kind == "stat":
        value = number(answer[0][1].points[-1][1], panel.unit)
        place = f'x="{width / 2}" y="{height / 2 + 18}"'
        yield f'<text {place} text-anchor="middle" font-size="26">{value}</text>'
    elif panel.kind == "table":
        yield from _table(panel, answer, width, height)
    else:
        yield from _chart(panel, answer, width, height, start, end)


def _table(panel: Panel, answer: Answer, width: int, height: int) -> Iterator[str]:
    units = {query.legend: query.unit or panel.unit for query in panel.queries if query.legend}
    columns = [*sorted({name for _, series in answer for name in series.labels}), *units]
    rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for name, series in answer:
        row = rows.setdefault(tuple(sorted(series.labels.items())), dict(series.labels))
        if name:
            row[name] = number(series.points[-1][1], units[name])
    shown = list(rows.values())[: min(_ROWS, (height - 40) // 20)]
    step = (width - 16) / len(columns)
    for line, row in enumerate([{name: name for name in columns}, *shown]):
        weight = ' fill="#666"' if line == 0 else ""
        for at, name in enumerate(columns):
            text = escape(row.get(name, "")[:_KEPT])
            yield f'<text x="{8 + at * step:.0f}" y="{38 + line * 20}"{weight}>{text}</text>'
    if len(rows) > len(shown):
        yield _more(width, len(rows) - len(shown))


def _chart(
    panel: Panel, answer: Answer, width: int, height: int, start: float, end: float
) -> Iterator[str]:
    left, top, right, bottom = 62, 26, width - 10, height - 36
    lines = (
        _stack(answer)
        if panel.stacked
        else [(name, list(series.points)) for name, series in answer]
    )
    drawn = [
        (name, [point for point in points if math.isfinite(point[1])]) for name, points in lines
    ]
    most = max((value for _, points in drawn for _, value in points), default=0.0) or 1.0

    def place(point: tuple[float, float]) -> tuple[float, float]:
        time, value = point
        return left + (time - start) / (end - start) * (right - left), bottom - max(
            value, 0.0
        ) / most * (bottom - top)

    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - top)
        yield f'<line x1="{left}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e7e7e7"/>'
        yield (
            f'<text x="{left - 4}" y="{y + 4:.0f}" text-anchor="end" fill="#666">'
            f"{number(most * part, panel.unit)}</text>"
        )
    for part in (0.0, 0.5, 1.0):
        x = left + part * (right - left)
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[part]
        yield (
            f'<text x="{x:.0f}" y="{bottom + 13}" text-anchor="{anchor}" fill="#666">'
            f"{(end - start) * part:.0f} s</text>"
        )
    step = (end - start) / 100
    for at, (_, points) in enumerate(drawn):
        color = _COLORS[at % len(_COLORS)]
        for line in _unbroken(points, step):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, line))
            yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
    room = (width - 16) / _LEGEND
    for at, (name, _) in enumerate(drawn[:_LEGEND]):
        x = 8 + at * room
        color = _COLORS[at % len(_COLORS)]
        yield f'<rect x="{x:.0f}" y="{height - 16}" width="8" height="8" fill="{color}"/>'
        yield f'<text x="{x + 12:.0f}" y="{height - 8}">{escape(name[: round(room / 6.6)])}</text>'
    if len(drawn) > _LEGEND:
        yield _more(width, len(drawn) - _LEGEND)


def _more(width: int, count: int) -> str:
    return f'<text x="{width - 8}" y="16" text-anchor="end" fill="#888">and {count} more</text>'


def _stack(answer: Answer) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return each series on top of the series before it."""
    sums: dict[float, float] = {}
    stacked: list[tuple[str, list[tuple[float, float]]]] = []
    for name, series in answer:
        points = []
        for time, value in series.points:
            sums[time] = sums.get(time, 0.0) + value
            points.append((time, sums[time]))
        stacked.append((name, points))
    return stacked


def _unbroken(
    points: Sequence[tuple[float, float]], step: float
) -> Iterator[list[tuple[float, float]]]:
    """Yield the parts of a line between gaps without values."""
    line: list[tuple[float, float]] = []
    for point in points:
        if line and point[0] - line[-1][0] > 1.5 * step:
            yield line
            line = []
        line.append(point)
    if line:
        yield line if len(line) > 1 else [line[0], (line[0][0] + step / 2, line[0][1])]
