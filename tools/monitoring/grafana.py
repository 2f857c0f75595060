"""Grafana dashboards as typed values, and their JSON, as far as the project's dashboards need.

Grafana's own SDK for Python is experimental and changes with each release, and grafanalib writes
old panel types. The project needs little: three kinds of panels in rows of 24 columns, queries to
one Prometheus that the user chooses, and variables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Unit = Literal["short", "bytes", "s", "ops", "percentunit", "dateTimeAsIso"]
SCHEMA_VERSION = 41  # Grafana 12; older ones read it too
COLUMNS = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """A query and the legend of its series, such as `{{level}}`.

    In a table it is a column with this name, and with this unit if it differs from the panel's.
    A table shows only the labels of a query without a name.
    """

    expr: str
    legend: str = ""
    unit: Unit | None = None


@dataclass(frozen=True)
class Panel:
    """A panel. A table and a number show the last values of the queries, a chart their history."""

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    unit: Unit = "short"
    width: int = 12
    height: int = 8
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under a heading, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice of the user: one or several values of a label of a metric."""

    name: str
    label: str
    metric: str
    of: str


@dataclass(frozen=True)
class Dashboard:
    """A whole dashboard; `name` is the name of its file and the end of its permanent uid."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    @property
    def uid(self) -> str:
        """Return its identity in Grafana."""
        return f"pinwarden-{self.name}"

    def panels(self) -> Iterator[Panel]:
        """Yield all panels in their order."""
        for row in self.rows:
            yield from row.panels

    def to_json(self) -> Json:
        """Return the JSON for Grafana."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["pinwarden"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "annotations": {"list": []},
            "links": [
                {
                    "type": "dashboards",
                    "tags": ["pinwarden"],
                    "title": "Pinwarden",
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "panels": list(_laid_out(self.rows)),
        }


@dataclass(frozen=True)
class Place:
    """A position and a size, in columns and units of height."""

    x: int
    y: int
    width: int
    height: int


def layout(rows: Sequence[Row]) -> Iterator[tuple[Row | Panel, Place]]:
    """Yield each heading and panel with its place: panels fill lines of 24 columns."""
    y = 0
    for row in rows:
        yield row, Place(0, y, COLUMNS, 1)
        y += 1
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, tallest = y + tallest, 0, 0
            yield panel, Place(x, y, panel.width, panel.height)
            x += panel.width
            tallest = max(tallest, panel.height)
        y += tallest


def _laid_out(rows: Sequence[Row]) -> Iterator[Json]:
    for number, (element, place) in enumerate(layout(rows), 1):
        grid = {"x": place.x, "y": place.y, "w": place.width, "h": place.height}
        if isinstance(element, Row):
            yield {
                "id": number,
                "type": "row",
                "title": element.title,
                "collapsed": False,
                "gridPos": grid,
                "panels": [],
            }
        else:
            yield {"id": number, "gridPos": grid, **_panel(element)}


def _panel(panel: Panel) -> Json:
    instant = panel.kind != "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": instant,
            "range": not instant,
            **({"format": "table"} if panel.kind == "table" else {}),
        }
        for number, query in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, **_defaults(panel)},
            "overrides": _overrides(panel),
        },
        "options": _options(panel),
        **_transformations(panel),
    }


def _defaults(panel: Panel) -> Json:
    if panel.kind != "timeseries":
        return {}
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    return {
        "min": 0,
        "custom": {
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": stacking,
        },
    }


def _overrides(panel: Panel) -> list[Json]:
    return [
        {
            "matcher": {"id": "byName", "options": query.legend},
            "properties": [{"id": "unit", "value": query.unit}],
        }
        for query in panel.queries
        if query.unit
    ]


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat":
            return {
                "reduceOptions": {"calcs": ["lastNotNull"]},
                "colorMode": "none",
                "graphMode": "none",
            }
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case _:
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _transformations(panel: Panel) -> Json:
    """Return a table's columns: one for each query, joined by the labels, without the time."""
    if panel.kind != "table":
        return {}
    names = {
        f"Value #{chr(ord('A') + number)}": query.legend
        for number, query in enumerate(panel.queries)
    }
    if len(panel.queries) == 1:
        names = {"Value": panel.queries[0].legend}
    hidden = {"Time": True, **{column: True for column, name in names.items() if not name}}
    organize = {
        "excludeByName": hidden,
        "renameByName": {column: name for column, name in names.items() if name},
    }
    return {
        "transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    }


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.of})"
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
        "hide": 0,
    }
