"""What the chart renders, with default and other values: the real server takes every object, and so does the schema of each kind."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import chartdocs
from cluster import chart
from cluster.build import binary
from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError

from .conftest import ROOT, run_kubectl

VALUES = [None, *sorted((chart.CHART / "ci").glob("*-values.yaml"))]
MONITORING = ROOT / "tests" / "cluster" / "monitoring-crds.yaml"


def name_of(path: Path | None) -> str:
    return path.stem if path else "default"


@pytest.fixture(scope="module")
def server() -> Iterator[ControlPlane]:
    """An API server with the CRDs, the namespace, and kinds by the names of the Prometheus operator's."""
    with ControlPlane() as running:
        space = chart.manifest(only=["agent/access.yaml"])
        for arguments, stdin in (
            (("apply", "--server-side", "-f", str(ROOT / "crds"), "-f", str(MONITORING)), ""),
            (("apply", "--server-side", "-f", "-"), space),
            (("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"), ""),
        ):
            done = run_kubectl(running.kubeconfig, *arguments, stdin=stdin)
            assert done.returncode == 0, done.stderr
        yield running


def test_there_are_six_values_files_besides_the_default() -> None:
    assert len(VALUES) >= 7


@pytest.mark.parametrize("values", VALUES, ids=name_of)
def test_the_server_takes_every_object(server: ControlPlane, values: Path | None) -> None:
    objects = chart.render(values=[values] if values else [])
    done = run_kubectl(
        server.kubeconfig,
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"),
        stdin=yaml.safe_dump_all(objects),
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    assert len(done.stdout.splitlines()) == len(objects)


@pytest.fixture(scope="module")
def schemas(server: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schema of each kind as the server publishes it (/openapi/v2), in the form that kubeconform reads."""
    folder = tmp_path_factory.mktemp("schemas")
    raw = run_kubectl(server.kubeconfig, "get", "--raw", "/openapi/v2").stdout
    definitions: dict[str, Any] = _strict(
        json.loads(raw.replace("#/definitions/", "_all.json#/definitions/"))["definitions"]
    )
    (folder / "_all.json").write_text(json.dumps({"definitions": definitions}))
    for definition in definitions.values():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            parts = (kind["kind"].lower(), kind["group"].split(".")[0], kind["version"])
            (folder / f"{'-'.join(filter(None, parts))}.json").write_text(json.dumps(definition))
    return folder


def _strict(schema: Any) -> Any:
    """In JSON schema's own words, and without room for fields that it does not name."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    closed = "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    return {key: _strict(value) for key, value in schema.items()} | (
        {"additionalProperties": False} if closed and isinstance(schema["properties"], dict) else {}
    )


@pytest.mark.parametrize("values", VALUES, ids=name_of)
def test_every_object_fits_the_schema_of_its_kind(schemas: Path, values: Path | None) -> None:
    objects = chart.render(values=[values] if values else [])
    done = subprocess.run(
        [
            *(str(binary("kubeconform")), "-strict", "-summary", "-output", "json"),
            *("-schema-location", f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"),
        ],
        input=yaml.safe_dump_all(objects),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary == {"valid": len(objects), "invalid": 0, "errors": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gate.admission.enabled": "maybe"}, "/gate/admission/enabled"),
        ({"image.tga": "x"}, "tga"),
        ({"shared.memory": "lots"}, "/shared/memory"),
        ({"uninstall.gatedPods": "Ignore"}, "/uninstall/gatedPods"),
        ({"image.digest": "sha256:12"}, "/image/digest"),
        ({"kubeletRoot": "var/lib"}, "/kubeletRoot"),
        (
            {"metrics.podMonitor.enabled": "true", "metrics.serviceMonitor.enabled": "true"},
            "metrics.podMonitor.enabled and metrics.serviceMonitor.enabled: choose one",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(said)):
        chart.render(sets=wrong)


def test_in_another_namespace_nothing_names_the_usual_one() -> None:
    assert chart.NAMESPACE not in yaml.safe_dump_all(chart.render(namespace="elsewhere"))


def test_without_gate_and_accountant_nothing_of_them_is_left() -> None:
    objects = chart.render(sets={"gate.enabled": "false", "shared.enabled": "false"})
    (agent,) = (each for each in objects if each["kind"] == "DaemonSet")
    assert [each["name"] for each in agent["spec"]["template"]["spec"]["containers"]] == ["agent"]
    policies = [each["metadata"]["name"] for each in objects if each["kind"].endswith("AdmissionPolicy")]
    assert policies == ["pinwarden-agent-own-node"]
    capabilities = [
        each["securityContext"]["capabilities"] for each in agent["spec"]["template"]["spec"]["containers"]
    ]
    assert capabilities == [{"drop": ["ALL"], "add": ["SYS_RESOURCE"]}]


def test_the_readme_is_that_of_the_values() -> None:
    assert (chart.CHART / "README.md").read_text() == chartdocs.readme(), "run `make docs`"


def test_the_plain_manifests_are_those_of_the_chart() -> None:
    kept = {path.name: path.read_text() for path in (ROOT / "manifests").iterdir()}
    assert kept == chartdocs.manifests(), "run `make manifests`"


def test_the_plain_manifests_are_taken_by_the_server(server: ControlPlane) -> None:
    (path,) = (ROOT / "manifests").iterdir()
    done = run_kubectl(
        server.kubeconfig,
        *(
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "--force-conflicts",
            "-f",
            str(path),
        ),
    )
    assert done.returncode == 0, done.stderr
    assert "Helm" not in path.read_text().partition("\n")[2]
