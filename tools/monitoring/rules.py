"""Prometheus alerts as typed values, and the rules file that Prometheus reads.

An expression has the times of a real cluster; `Pace` divides all of them by one factor for tests.
An alert's series have no labels of the scraped process, so they continue when another replica
leads.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import yaml

RUNBOOKS = "RUNBOOKS"
"""A placeholder in the rules for the address of docs/alerts.md; the chart replaces it."""

Severity = Literal["critical", "warning", "info"]
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"(\d+)([smh])")


@dataclass(frozen=True)
class Alert:
    """An alert and its runbook in Markdown; it fires when `expr` is true for `lasting`."""

    name: str
    severity: Severity
    expr: str
    lasting: str
    summary: str
    description: str
    meaning: str
    impact: str
    diagnosis: str
    mitigation: str

    @property
    def anchor(self) -> str:
        """The anchor of its section in docs/alerts.md."""
        return self.name.lower()


@dataclass(frozen=True)
class Group:
    """Alerts about one subject."""

    name: str
    title: str
    alerts: tuple[Alert, ...]


@dataclass(frozen=True)
class Pace:
    """Divides every time by `factor`."""

    factor: int = 1

    def duration(self, text: str) -> str:
        """Return a Prometheus duration, such as `15m`, at this pace.

        Raises:
            ValueError: the text is not a duration.
        """
        found = _DURATION.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a whole number of s, m or h")
        seconds = Fraction(int(found[1]) * _SECONDS[found[2]], self.factor)
        for unit in ("h", "m", "s"):
            if seconds and (seconds / _SECONDS[unit]).denominator == 1:
                return f"{seconds / _SECONDS[unit]}{unit}"
        return f"{round(seconds * 1000)}ms"

    def windows(self, expr: str) -> str:
        """Return an expression with its ranges, such as `[15m]`, at this pace."""
        return re.sub(r"\[(\d+[smh])\]", lambda found: f"[{self.duration(found[1])}]", expr)


def rules(groups: Iterable[Group], pace: Pace = Pace()) -> dict[str, Any]:
    """Return the content of a rules file."""
    return {
        "groups": [
            {
                "name": f"pinwarden-{group.name}",
                "rules": [_rule(alert, pace) for alert in group.alerts],
            }
            for group in groups
        ]
    }


def to_yaml(content: dict[str, Any]) -> str:
    """Return YAML without line breaks in texts."""
    return yaml.safe_dump(content, sort_keys=False, width=10_000)


def wrapped(text: str) -> str:
    """Return a paragraph of Markdown in lines of at most 100 columns."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _rule(alert: Alert, pace: Pace) -> dict[str, Any]:
    lasting = {"for": pace.duration(alert.lasting)} if alert.lasting != "0s" else {}
    return {
        "alert": alert.name,
        "expr": pace.windows(alert.expr),
        **lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{RUNBOOKS}#{alert.anchor}",
        },
    }
