"""The catalogue, dashboards and alerts: up to date, complete, and of metrics that there are."""

import ast
import inspect
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import alerts, catalogue, generated
from monitoring.boards import BOARDS
from monitoring.boards.node import NODE
from monitoring.grafana import COLUMNS, Dashboard, Panel, Place, Query, Row, layout
from monitoring.pictures import draw, legend, number
from monitoring.prometheus import Series
from monitoring.rules import Pace
from pinwarden.api.reasons import (
    AUDIT,
    ENDED,
    GATE_LOST,
    GATE_UNAVAILABLE,
    NO_PROCESSES,
    NOT_READABLE,
    POD_GONE,
    RLIMIT_GATE,
    SECCOMP_GATE,
    SILENT,
    STARTING,
)
from pinwarden.controller.metrics_totals import OTHER, REASONS
from pinwarden.node.agent import status
from pinwarden.node.pods import policy
from pinwarden.node.pods.privileges import HeldBackReason

METRIC = re.compile(r"pinwarden_(?:operator|agent)_\w+")
SELECTOR = re.compile(r"(pinwarden_\w+)\{([^}]*)\}")
EXPRESSIONS = [(alert.name, alert.expr) for alert in alerts.alerts()] + [
    (f"{board.title}: {panel.title}", query.expr)
    for board in BOARDS
    for panel in board.panels()
    for query in panel.queries
]


@pytest.mark.parametrize("path", generated.files(), ids=lambda path: path.name)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    assert path.read_text() == generated.files()[path], "run `make docs`"


@pytest.mark.parametrize(
    ("program", "known"), [("operator", catalogue.OPERATOR), ("agent", catalogue.AGENT)]
)
def test_the_catalogue_has_what_the_registries_have(program: str, known: catalogue.Labels) -> None:
    there = catalogue.families(program, pods=True)
    assert there.keys() == known.keys()
    assert all(metric.documentation.endswith(".") for metric in there.values())
    pods = there.keys() - catalogue.families(program, pods=False).keys()
    assert pods == {name for name in known if name.startswith("pod_")}


def test_rules_are_named_for_metrics_that_there_are() -> None:
    rules = (
        {f"P{number}" for number in range(1, 15)}
        | {f"M{number}" for number in range(1, 12)}
        | {"H1", "H2", "H3"}
    )
    assert catalogue.RULES.keys() <= catalogue.OPERATOR.keys() | catalogue.AGENT.keys()
    assert {each for value in catalogue.RULES.values() for each in value.split(", ")} <= rules


def test_a_metric_that_is_not_in_the_catalogue_is_an_error() -> None:
    with pytest.raises(KeyError):
        catalogue.labels_of("pinwarden_operator_wishes_total")


def test_every_reason_that_an_agent_may_give_is_in_the_closed_set() -> None:
    given_by_agent = {
        SILENT,
        OTHER,
        AUDIT,
        SECCOMP_GATE,
        GATE_LOST,
        RLIMIT_GATE,
        GATE_UNAVAILABLE,
        policy.NOT_UNDERSTOOD,
        STARTING,
        ENDED,
        NO_PROCESSES,
        NOT_READABLE,
        POD_GONE,
    }
    given_by_agent |= {each.value for each in HeldBackReason}
    for module in (status, policy):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("PodLevel", "report"):
                words = {each.value for each in node.args if isinstance(each, ast.Constant)}
                given_by_agent |= {
                    word for word in words if isinstance(word, str) and word.isalpha()
                }
    assert given_by_agent == set(REASONS)


@pytest.mark.parametrize(("where", "expr"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_a_query_asks_for_metrics_and_labels_that_there_are(where: str, expr: str) -> None:
    for name in METRIC.findall(expr):
        catalogue.labels_of(name)
    for name, selected in SELECTOR.findall(expr):
        known = {**catalogue.labels_of(name), "node": "of a scraped agent"}
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selected):
            assert label in known, (where, label)
            values = known[label]
            if not isinstance(values, str):
                assert set(value.split("|")) <= set(values), (where, label, operator)


def test_all_dashboards_but_that_of_a_node_need_the_operator_alone() -> None:
    for board in BOARDS:
        found = {
            name
            for panel in board.panels()
            for query in panel.queries
            for name in METRIC.findall(query.expr)
        }
        assert found
        assert any("_agent_" in name for name in found) == (board is NODE), board.title


def test_dashboards_keep_their_identity_and_say_what_they_show() -> None:
    assert [board.uid for board in BOARDS] == [
        *("pinwarden-cluster", "pinwarden-node", "pinwarden-namespace", "pinwarden-shared-memory")
    ]
    for board in BOARDS:
        content = board.to_json()
        numbers = [panel["id"] for panel in content["panels"]]
        assert len(set(numbers)) == len(numbers)
        for panel in content["panels"]:
            if panel["type"] != "row":
                assert panel["description"].endswith((".", ")."))
                assert panel["targets"]
                assert {target["datasource"]["uid"] for target in panel["targets"]} == {
                    "${datasource}"
                }
        chosen = {variable["name"] for variable in content["templating"]["list"]}
        used = set(
            re.findall(
                r"\$\{?([a-z]+)", json.dumps([panel.get("targets") for panel in content["panels"]])
            )
        )
        assert used == chosen


rows = st.lists(
    st.builds(
        Row,
        st.just("row"),
        st.lists(
            st.builds(
                Panel,
                st.just("p"),
                st.just("d"),
                st.just(()),
                width=st.integers(1, 24),
                height=st.integers(1, 9),
            ),
            max_size=6,
        ).map(tuple),
    ),
    max_size=4,
)


@given(rows)
def test_nothing_lies_on_top_of_something_else(rows: list[Row]) -> None:
    places = [place for _, place in layout(rows)]
    assert len(places) == len(rows) + sum(len(row.panels) for row in rows)
    assert all(place.x + place.width <= COLUMNS for place in places)
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]


def overlap(one: Place, other: Place) -> bool:
    across = one.x < other.x + other.width and other.x < one.x + one.width
    return across and one.y < other.y + other.height and other.y < one.y + one.height


def test_every_alert_has_a_name_of_its_own_and_a_runbook() -> None:
    names = [alert.name for alert in alerts.alerts()]
    assert len(set(names)) == len(names)
    sections = sections_of(alerts.document())
    for alert in alerts.alerts():
        assert alert.name.startswith("Pinwarden")
        assert alert.summary.endswith(".")
        assert alert.description.endswith(".")
        section = sections[alert.name]
        for part in ("Meaning", "Impact", "Diagnosis", "Mitigation"):
            assert re.search(rf"\*\*{part}\.\*\*\s+\S", section), (alert.name, part)
        assert "$ kubectl" in section
        assert section.count("```") % 2 == 0


def test_a_runbook_is_found_by_the_address_in_the_rules() -> None:
    text = (generated.CHART / "alerts.yaml").read_text()
    anchors = {heading.lower() for heading in sections_of(alerts.document())}
    found = re.findall(r"runbook_url: RUNBOOKS#(\w+)", text)
    assert len(found) == text.count("- alert:") == len(list(alerts.alerts()))
    assert set(found) <= anchors


def sections_of(document: str) -> dict[str, str]:
    """What stands under each heading of the third level."""
    parts = re.split(r"^### (\w+)$", document, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_an_alert_reads_no_label_that_its_series_have_not() -> None:
    for alert in alerts.alerts():
        for label in re.findall(r"\$labels\.(\w+)", alert.summary + alert.description):
            grouped = {
                each
                for names in re.findall(r"by \(([^)]*)\)", alert.expr)
                for each in names.split(", ")
            }
            assert label in grouped, (alert.name, label)


@pytest.mark.parametrize(
    ("text", "factor", "shorter"),
    [
        ("15m", 60, "15s"),
        ("1h", 60, "1m"),
        ("2m", 60, "2s"),
        ("5m", 1, "5m"),
        ("90m", 1, "90m"),
        ("1m", 7, "8571ms"),
    ],
)
def test_a_pace_shortens_times(text: str, factor: int, shorter: str) -> None:
    assert Pace(factor).duration(text) == shorter
    assert Pace(factor).windows(f"rate(x[{text}]) > 5") == f"rate(x[{shorter}]) > 5"


def test_what_is_no_time_is_an_error() -> None:
    with pytest.raises(ValueError, match="'soon' is not a whole number of s, m or h"):
        Pace().duration("soon")


def test_a_legend_takes_the_values_of_labels() -> None:
    assert legend("{{kind}} {{space}} x", {"kind": "PinLimit"}) == "PinLimit  x"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "bytes", "0 B"),
        (70 * 2**20, "bytes", "70 MiB"),
        (0.972, "percentunit", "97.2 %"),
        (1.5, "s", "1.5 s"),
        (2, "ops", "2/s"),
    ],
)
def test_numbers_are_for_people(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text  # type: ignore[arg-type]


def pictured() -> Iterator[Panel]:
    queries = (Query("x", "{{a}}"), Query("y", "second", "bytes"))
    yield Panel("Chart <1>", "d", queries, stacked=True)
    yield Panel("Table", "d", queries, "table")
    yield Panel("Number", "d", queries, "stat")
    yield Panel("Empty", "d", queries)


def test_a_picture_has_every_panel_and_gaps_where_nothing_was_known() -> None:
    panels = tuple(pictured())
    board = Dashboard("x", "X", "d", (Row("Row & more", panels),))
    gap = Series({"a": "<b>"}, ((0.0, 1.0), (0.5, 2.0), (50.0, 3.0), (50.5, float("nan"))))
    answers = {panel: [("second", gap)] for panel in panels[:3]}
    root = ET.fromstring(draw(board, answers, 0.0, 100.0))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Row & more", "Chart <1>", "Table", "Number", "Empty", "no data", "<b>"} <= set(texts)
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2
