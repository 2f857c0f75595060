"""Prometheus alerts as typed values, and the rules file that Prometheus reads.

An expression is written with the times of a real cluster; `Pace` shortens all of them by one factor, so that a test sees in seconds what
takes minutes. An alert's series have labels of their own only, never those of the scraped process: it goes on when another replica leads.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import yaml

RUNBOOKS = "RUNBOOKS"
"""Stands for the address of docs/alerts.md in the rules; who installs them puts it there."""

Severity = Literal["critical", "warning", "info"]
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"(\d+)([smh])")


@dataclass(frozen=True)
class Alert:
    """One alert and its runbook. `lasting` is for how long its expression must hold; the runbook's texts are Markdown."""

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
        """Of its section in docs/alerts.md."""
        return self.name.lower()


@dataclass(frozen=True)
class Group:
    """Alerts about one subject."""

    name: str
    title: str
    alerts: tuple[Alert, ...]


@dataclass(frozen=True)
class Pace:
    """Makes every time shorter by this factor."""

    factor: int = 1

    def duration(self, text: str) -> str:
        """A duration of Prometheus, such as `15m`, at this pace. Raises ValueError when it is none."""
        found = _DURATION.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a whole number of s, m or h")
        seconds = Fraction(int(found[1]) * _SECONDS[found[2]], self.factor)
        for unit in ("h", "m", "s"):
            if seconds and (seconds / _SECONDS[unit]).denominator == 1:
                return f"{seconds / _SECONDS[unit]}{unit}"
        return f"{round(seconds * 1000)}ms"

    def windows(self, expr: str) -> str:
        """An expression with all of its ranges, such as `[15m]`, at this pace."""
        return re.sub(r"\[(\d+[smh])\]", lambda found: f"[{self.duration(found[1])}]", expr)


def rules(groups: Iterable[Group], pace: Pace = Pace()) -> dict[str, Any]:
    """The content of a rules file."""
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
    """A rules file as text, its long lines whole."""
    return yaml.safe_dump(content, sort_keys=False, width=10_000)


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
