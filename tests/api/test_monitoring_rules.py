"""Each alert on promtool: it fires in time, and only with a cause."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monitoring.alerts import alerts
from monitoring.prometheus import promtool
from monitoring.rules import Alert, Group, rules

from .conftest import ROOT

Series = Mapping[str, str]
OPERATOR = "pinwarden_operator"
LIMIT = 'kind="PinLimit",resource_namespace="team-a",limit="db"'
LIMIT_LABELS = {"kind": "PinLimit", "resource_namespace": "team-a", "limit": "db"}
GROUP = 'resource_namespace="team-a",group="cache"'
GROUP_LABELS = {"resource_namespace": "team-a", "group": "cache"}
LEADER = 'job="pinwarden-operator",instance="a"'


@dataclass(frozen=True)
class Case:
    """Series with which an alert fires with these labels, and others; a sample each minute."""

    bad: Series
    well: Series
    labels: Mapping[str, str] = field(default_factory=dict)


def problem(name: str) -> Case:
    series = f'{OPERATOR}_nodes_with_problem{{{LEADER},problem="{name}"}}'
    return Case({series: "1x120"}, {series: "0x120"}, {"problem": name})


def condition(kind: str, name: str, bad: str = "False") -> Case:
    """Return a condition at a wrong status; the alert survives a change of the replica."""
    labels = {"limit": LIMIT, "group": GROUP}[kind]

    def series(status: str, instance: str = "a") -> str:
        labelled = f'instance="{instance}",{labels},condition="{name}",status="{status}"'
        return f"{OPERATOR}_{kind}_condition{{{labelled}}}"

    return Case(
        {series(bad): "1x10 stale", series(bad, "b"): "_x10 1x110"},
        {series("True"): "1x120"},
        {"limit": LIMIT_LABELS, "group": GROUP_LABELS}[kind],
    )


def wanted(kind: str) -> Case:
    """Enforced; one in audit is well, and one that no pod matches."""
    labels = {"limit": LIMIT, "group": GROUP}[kind]
    case = condition(kind, "Enforced", "Unknown")
    info = f'{OPERATOR}_{kind}_info{{instance="b",{labels},enforcement="%s"}}'
    pods = {f"{OPERATOR}_{kind}_pods{{{labels}}}": "2x120"}
    other = {"limit": LIMIT.replace("db", "idle"), "group": GROUP.replace("cache", "idle")}[kind]
    idle = {series.replace(labels, other): values for series, values in case.bad.items()}
    enforce = {f'{OPERATOR}_{kind}_info{{instance="b",{other},enforcement="Enforce"}}': "1x120"}
    no_pods = {**idle, **enforce, f"{OPERATOR}_{kind}_pods{{{other}}}": "0x120"}
    return Case(
        {**case.bad, info % "Enforce": "1x120", **pods},
        {**case.bad, info % "Audit": "1x120", **pods, **no_pods},
        case.labels,
    )


def group_figures(figure: str, bad: int, well: int) -> Case:
    """Return a figure of a group of 1000 bytes; a group that pinwarden fills is no alert."""
    series = f"{OPERATOR}_group_{figure}{{{GROUP}}}"
    capacity = {f"{OPERATOR}_group_capacity_bytes{{{GROUP}}}": "1000x120"}
    other = f'{OPERATOR}_group_{figure}{{resource_namespace="team-a",group="other"}}'
    of_other = f'{OPERATOR}_group_%s{{resource_namespace="team-a",group="other"%s}}'
    filled = {
        of_other % ("info", ',prefault="true"'): "1x120",
        of_other % ("capacity_bytes", ""): "1000x120",
    }
    adopted = {f'{OPERATOR}_group_info{{{GROUP},prefault="false"}}': "1x120"}
    return Case(
        {series: f"{bad}x120", **capacity, **adopted},
        {series: f"{well}x120", **capacity, **adopted, other: f"{bad}x120", **filled},
        GROUP_LABELS,
    )


UP = 'up{job="pinwarden-operator",instance="a"}'
WRITES = f'{OPERATOR}_writes_total{{{LEADER},kind="status",result="%s"}}'
BUCKET = f'{OPERATOR}_apply_seconds_bucket{{{LEADER},le="%s"}}'
UNREADABLE = f'{OPERATOR}_unreadable_objects{{{LEADER},resource="limits"}}'
FAILING = f'{OPERATOR}_items_failing{{{LEADER},loop="limits"}}'
FAILURES = 'pinwarden_agent_failures_total{node="n1",operation="watch"}'
HEARD = 'pinwarden_agent_heard_timestamp_seconds{node="n1",process="%s"}'
NOT_TAKEN = f'{OPERATOR}_nodes_with_problem{{{LEADER},problem="SpecNotTaken"}}'
AGENT_PROBLEM = 'pinwarden_agent_configuration_problem{node="n1"}'
OVERSHOOTS = f"{OPERATOR}_limit_overshoots_total{{{LIMIT}}}"
DENIALS = f"{OPERATOR}_limit_denials_total{{{LIMIT}}}"
CASES: Mapping[str, Case] = {
    "PinwardenOperatorDown": Case({UP: "0x120"}, {UP: "1x120"}),
    "PinwardenOperatorNoLeader": Case(
        {
            f'{OPERATOR}_leader{{instance="a"}}': "0x120",
            f'{OPERATOR}_leader{{instance="b"}}': "0x120",
        },
        {
            f'{OPERATOR}_leader{{instance="a"}}': "0x120",
            f'{OPERATOR}_leader{{instance="b"}}': "1x120",
        },
    ),
    "PinwardenOperatorNotSynced": Case(
        {
            f'{OPERATOR}_synced{{instance="a"}}': "1x120",
            f'{OPERATOR}_synced{{instance="b"}}': "0x120",
        },
        {f'{OPERATOR}_synced{{instance="a"}}': "1x120"},
    ),
    "PinwardenWritesFail": Case(
        {WRITES % "refused": "0+6x120"},
        {
            WRITES % "written": "0+600x120",
            WRITES % "conflict": "0+60x120",
            WRITES % "server": "0x60 1x60",
        },
        {"kind": "status", "result": "refused"},
    ),
    "PinwardenApplySlow": Case(
        {BUCKET % "10.0": "0x120", BUCKET % "30.0": "0+1x120", BUCKET % "+Inf": "0+1x120"},
        {BUCKET % "10.0": "0+95x120", BUCKET % "30.0": "0+100x120", BUCKET % "+Inf": "0+100x120"},
    ),
    "PinwardenObjectsUnreadable": Case(
        {
            UNREADABLE: "7x10 0x110",
            FAILING: "0x10 1x110",
        },  # the object is read now, and a loop fails on it
        {UNREADABLE: "0x120", FAILING: "0x120"},
        {"resource": "limits"},
    ),
    "PinwardenAgentSilent": problem("AgentSilent"),
    "PinwardenAgentFailing": Case(
        {FAILURES: "0+6x120"}, {FAILURES: "0+1x120"}, {"node": "n1", "operation": "watch"}
    ),
    "PinwardenSpecNotTaken": Case(
        {AGENT_PROBLEM: "1x120"}, {AGENT_PROBLEM: "0x120", NOT_TAKEN: "0x120"}
    ),
    "PinwardenReportTruncated": problem("Truncated"),
    "PinwardenNodeObserveOnly": problem("ObserveOnly"),
    "PinwardenGateSilent": Case(
        {HEARD % "gate": "0x120"},
        {HEARD % "gate": "0+60x120", HEARD % "accountant": "0x120"},
        {"node": "n1"},
    ),
    "PinwardenGateLost": problem("GateLost"),
    "PinwardenAccountantSilent": problem("AccountantSilent"),
    "PinwardenNotAccepted": condition("group", "Accepted"),
    "PinwardenLimitNotApplied": condition("limit", "Applied", "Unknown"),
    "PinwardenLimitNotEnforced": wanted("limit"),
    "PinwardenLimitExceeded": condition("limit", "WithinLimit"),
    "PinwardenOvershoot": Case({OVERSHOOTS: "0x85 1x35"}, {OVERSHOOTS: "3x120"}, LIMIT_LABELS),
    "PinwardenDenialsHigh": Case({DENIALS: "0+90x120"}, {DENIALS: "0+30x120"}, LIMIT_LABELS),
    "PinwardenGroupNotAvailable": condition("group", "Available"),
    "PinwardenGroupNotEnforced": wanted("group"),
    "PinwardenGroupExceeded": condition("group", "WithinLimit"),
    "PinwardenGroupNearCapacity": group_figures("fullest_bytes", 950, 850),
    "PinwardenGroupOrphaned": group_figures("orphaned_bytes", 2**27, 2**25),
    "PinwardenGroupDrainStuck": condition("group", "Drained"),
}
AT = "90m"
RULES = ROOT / "charts" / "pinwarden" / "files" / "alerts.yaml"


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == {alert.name for alert in alerts()}


def bare(alert: Alert) -> dict[str, Any]:
    """Write the rules file of one alert without texts, which the other scenario covers."""
    content = rules([Group("of-test", "", (alert,))])
    del content["groups"][0]["rules"][0]["annotations"]
    return content


def test_promtool(tmp_path: Path) -> None:
    """Write files per alert: promtool evaluates all rules of a file each minute of a test."""
    files = []
    for alert in alerts():
        content = {
            "rule_files": [f"{alert.name}-rules.yaml"],
            "evaluation_interval": "1m",
            "tests": checks(alert, CASES[alert.name]),
        }
        (tmp_path / f"{alert.name}-rules.yaml").write_text(yaml.safe_dump(bare(alert)))
        files.append(tmp_path / f"{alert.name}.yaml")
        files[-1].write_text(yaml.safe_dump(content, sort_keys=False))
    promtool("test", "rules", *map(str, files))


def checks(alert: Alert, case: Case) -> list[dict[str, Any]]:
    expected = [{"exp_labels": {"severity": alert.severity, **case.labels}}]
    fires = [{"eval_time": AT, "alertname": alert.name, "exp_alerts": expected}]
    if alert.lasting != "0s" and not any("+" in values for values in case.bad.values()):
        early = f"{int(alert.lasting[:-1]) - 1}m"
        fires.append({"eval_time": early, "alertname": alert.name, "exp_alerts": []})
    quiet = [{"eval_time": AT, "alertname": alert.name, "exp_alerts": []}]
    return [
        {"interval": "1m", "input_series": listed(case.bad), "alert_rule_test": fires},
        {"interval": "1m", "input_series": listed(case.well), "alert_rule_test": quiet},
    ]


def listed(series: Series) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series.items()]


def test_promtool_understands_the_rules_of_the_chart() -> None:
    assert f"{len(CASES)} rules found" in promtool("check", "rules", str(RULES))
