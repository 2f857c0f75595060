"""docs/security.md names each capability, mount of the node and right of the chart.

It names them at the container or account that has them.
"""

import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()
TEMPLATES = ROOT / "charts" / "pinwarden" / "templates"
VALUES = yaml.safe_load((ROOT / "charts" / "pinwarden" / "values.yaml").read_text())
RUNS = ("DaemonSet", "Deployment", "Job", "Pod", "StatefulSet", "CronJob")
_VALUE = re.compile(r"\{\{ (?:printf \"%s(/\w+)\" )?\.Values\.([\w.]+) \| quote \}\}")
_TEMPLATE = re.compile(r"\{\{.*?\}\}")


def value(name: str) -> str:
    """Return a value of the chart by its path, with dots."""
    return str(reduce(lambda values, key: values[key], name.split("."), VALUES))


def parsed(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a template, with the chart's values for paths and nothing else."""
    text = _VALUE.sub(lambda found: value(found[2]) + (found[1] or ""), path.read_text())
    kept = [
        _TEMPLATE.sub("x", line)
        for line in text.splitlines()
        if not line.strip().startswith("{{") and not line.strip().startswith("- {{")
    ]
    yield from (each for each in yaml.safe_load_all("\n".join(kept)) if each)


OBJECTS = [
    each
    for path in sorted(TEMPLATES.rglob("*.yaml"))
    if re.search(
        rf"^kind: ({'|'.join((*RUNS, 'ClusterRole', 'Role'))})$", path.read_text(), re.MULTILINE
    )
    for each in parsed(path)
]


def section(heading: str) -> str:
    """Return the text below a heading, with the headings below it."""
    marks = heading.partition(" ")[0]
    after = PAGE[PAGE.index(f"\n{heading}\n") + len(heading) + 2 :]
    return re.split(rf"^#{{2,{len(marks)}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each container of the chart, with its pod's spec."""
    for each in OBJECTS:
        if each["kind"] in RUNS:
            spec = each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
            yield from (
                (one, spec) for one in (*spec["containers"], *spec.get("initContainers", []))
            )


TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
CONTAINERS = list(containers())
ACCOUNTS = {each["metadata"]["name"] for each in OBJECTS if each["kind"] in ("ClusterRole", "Role")}


def test_the_chart_is_read() -> None:
    assert {"agent", "gate", "accountant", "holder", "operator", "uninstall"} <= {
        one["name"] for one, _ in CONTAINERS
    }
    assert {"pinwarden-agent", "pinwarden-operator", "pinwarden-uninstall"} <= ACCOUNTS


@pytest.mark.parametrize(
    ("container", "spec"), CONTAINERS, ids=[one["name"] for one, _ in CONTAINERS]
)
def test_the_page_names_everything_that_a_container_has(
    container: dict[str, Any], spec: dict[str, Any]
) -> None:
    text = section(f"### {container['name']}")
    security = container["securityContext"]
    assert security["capabilities"]["drop"] == ["ALL"]
    assert not security.get("privileged")
    added = set(security["capabilities"].get("add", []))
    assert added == set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", first_cells(text)))

    paths = {
        each["name"]: each["hostPath"]["path"]
        for each in spec.get("volumes", [])
        if "hostPath" in each
    }
    mounts = {
        paths[each["name"]] + (", read-only" if each.get("readOnly") else "")
        for each in container.get("volumeMounts", [])
        if each["name"] in paths
    }
    assert mounts == {
        path.replace("`", "")
        for path in re.findall(r"hostPath (`[^`]+`(?:, read-only)?)", first_cells(text))
    }

    assert bool(spec.get("hostPID")) == ("`hostPID: true`" in text)
    assert ("appArmorProfile" in security) == ("AppArmor" in text)
    assert not {"hostNetwork", "hostIPC"} & spec.keys()

    own = any(each["mountPath"] == TOKEN for each in container.get("volumeMounts", []))
    has = own or spec.get("automountServiceAccountToken", True)
    assert has == (container["name"] in ("agent", "operator", "uninstall", "probe"))


def first_cells(text: str) -> str:
    """Return the first cells of the rows of a table."""
    return "\n".join(line.split(" | ")[0] for line in text.splitlines() if line.startswith("| "))


@pytest.mark.parametrize("account", sorted(ACCOUNTS))
def test_the_page_names_the_rights_of_an_account(account: str) -> None:
    rules = [
        rule
        for each in OBJECTS
        if each["kind"] in ("ClusterRole", "Role") and each["metadata"]["name"] == account
        for rule in each["rules"]
    ]
    wanted = {
        (", ".join(f"`{one}`" for one in rule["resources"]), ", ".join(rule["verbs"]))
        for rule in rules
    }
    assert rights()[account] == wanted
    assert not [
        rule for rule in rules if "*" in rule["resources"] + rule["verbs"] + rule["apiGroups"]
    ]
    assert "secrets" not in str(rules)


def test_the_page_names_no_other_account() -> None:
    assert rights().keys() == ACCOUNTS


def rights() -> dict[str, set[tuple[str, str]]]:
    """Return the resources and verbs of the page by account."""
    by_account: dict[str, set[tuple[str, str]]] = {}
    name = ""
    for line in section("## Rights").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] not in ("account", "---"):
            name = cells[0].strip("`") or name
            by_account.setdefault(name, set()).add((cells[1], cells[2]))
    return by_account
