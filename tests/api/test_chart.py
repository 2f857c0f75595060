"""The rendered chart with default and other values: the server accepts it, and every schema."""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import docs.chart
from cluster import chart
from cluster.build import binary
from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError
from pinwarden.api.meta import LabelSelector
from pinwarden.api.quantity import MAX_BYTES, Quantity
from pinwarden.plan.selectors import selects

from .conftest import ROOT, run_kubectl

VALUES = [None, *sorted((chart.CHART / "ci").glob("*-values.yaml"))]
SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
DEFAULTS: dict[str, Any] = yaml.safe_load((chart.CHART / "values.yaml").read_text())
MONITORING = ROOT / "tests" / "cluster" / "monitoring-crds.yaml"


def name_of(path: Path | None) -> str:
    return path.stem if path else "default"


@cache
def rendered(values: Path | None) -> list[chart.Object]:
    """The chart with one of the values files, rendered once; not to be changed."""
    return chart.render(values=[values] if values else [])


@pytest.fixture(scope="module")
def server() -> Iterator[ControlPlane]:
    """An API server with the CRDs, the namespace, and kinds of the Prometheus operator."""
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
def test_server_accepts_every_object(server: ControlPlane, values: Path | None) -> None:
    dry_run(server, rendered(values))


def dry_run(server: ControlPlane, objects: list[chart.Object]) -> None:
    """Have the server take the objects, without a warning."""
    done = run_kubectl(
        server.kubeconfig,
        *(
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "--force-conflicts",
            "-f",
            "-",
        ),
        stdin=yaml.safe_dump_all(objects),
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    assert len(done.stdout.splitlines()) == len(objects)


@pytest.fixture(scope="module")
def schemas(server: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the schema of each kind that the server publishes (/openapi/v2), for kubeconform."""
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


@pytest.fixture(scope="module")
def conformity(
    schemas: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, str]]]:
    """Return kubeconform's verdicts on all objects, by values file, in one run."""
    folder = tmp_path_factory.mktemp("rendered")
    for values in VALUES:
        (folder / name_of(values)).with_suffix(".yaml").write_text(
            yaml.safe_dump_all(rendered(values))
        )
    done = subprocess.run(
        [
            *(str(binary("kubeconform")), "-strict", "-verbose", "-output", "json"),
            *("-schema-location", f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"),
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(done.stdout)["resources"]:
        found.setdefault(Path(each["filename"]).stem, []).append(each)
    return found


@pytest.mark.parametrize("values", VALUES, ids=name_of)
def test_every_object_fits_the_schema_of_its_kind(
    conformity: dict[str, list[dict[str, str]]], values: Path | None
) -> None:
    judged = conformity[name_of(values)]
    assert not [each for each in judged if each["status"] != "statusValid"]
    assert len(judged) == len(rendered(values))


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
        (
            {"operator.unknownPods": "0", "operator.namespaces[0]": "team-a"},
            "operator.unknownPods: not allowed with operator.namespaces",
        ),
        ({"gate.nri.tolerationAnnotation": "a b"}, "/gate/nri/tolerationAnnotation"),
        ({"gate.nri.tolerationNamespaces[0]": "A"}, "/gate/nri/tolerationNamespaces/0"),
        (
            {"gate.nri.tolerationAnnotation": "a.io/b", "gate.mode": "Off"},
            "gate.nri.tolerationAnnotation: needs gate.enabled and a gate.mode other than Off",
        ),
        (
            {
                "gate.nri.tolerationAnnotation": "a.io/b",
                "gate.mode": "All",
                "gate.enabled": "false",
            },
            "gate.nri.tolerationAnnotation: needs gate.enabled and a gate.mode other than Off",
        ),
    ],
)
def test_wrong_value_is_rejected_with_its_name(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(said)):
        chart.render(sets=wrong)


@pytest.mark.parametrize("values", VALUES, ids=name_of)
def test_every_container_is_confined_as_documented(values: Path | None) -> None:
    seen = set()
    for each in rendered(values):
        if each["kind"] not in (*chart.RUNS, "Pod"):
            continue
        spec = each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
        for one in (*spec["containers"], *spec.get("initContainers", [])):
            seen.add(one["name"])
            security = spec.get("securityContext", {}) | one["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, one["name"]
            assert security["allowPrivilegeEscalation"] is False, one["name"]
            assert security["capabilities"]["drop"] == ["ALL"], one["name"]
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, one["name"]
            assert not security.get("privileged"), one["name"]
            assert "memory" in one["resources"]["limits"], one["name"]
    assert {"operator", "agent", "probe"} <= seen


def pod_spec(objects: list[chart.Object], name: str) -> Any:
    (found,) = (
        each for each in objects if each["kind"] in chart.RUNS and each["metadata"]["name"] == name
    )
    return found["spec"]["template"]["spec"]


def container(objects: list[chart.Object], workload: str, name: str) -> Any:
    (found,) = (each for each in pod_spec(objects, workload)["containers"] if each["name"] == name)
    return found


def rolling(**given: Any) -> dict[str, Any]:
    return {"updateStrategy": {"rollingUpdate": given}}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shared": {"memory": -1}}, "/shared/memory"),
        ({"shared": {"memory": 1.5}}, "/shared/memory"),
        ({"shared": {"memory": "1K"}}, "/shared/memory"),
        ({"operator": {"unknownPods": "0.5"}}, "/operator/unknownPods"),
        ({"operator": {"unknownPods": True}}, "/operator/unknownPods"),
        ({"operator": {"unknownPods": "8Pi"}}, "/operator/unknownPods"),
        ({"operator": {"unknownPods": 2**52 + 1}}, "/operator/unknownPods"),
        ({"agent": rolling(maxSurge="5")}, "/agent/updateStrategy/rollingUpdate/maxSurge"),
        ({"agent": rolling(maxSurge="101%")}, "/agent/updateStrategy/rollingUpdate/maxSurge"),
        (
            {"agent": rolling(maxUnavailable=-1)},
            "/agent/updateStrategy/rollingUpdate/maxUnavailable",
        ),
        ({"agent": rolling(partition=1)}, "/agent/updateStrategy/rollingUpdate"),
        ({"operator": {"priorityClassName": 123}}, "/operator/priorityClassName"),
        (
            {"agent": {"priorityClassName": "x\n      hostNetwork: true"}},
            "/agent/priorityClassName",
        ),
        ({"operator": {"namespaces": ["team-a #x"]}}, "/operator/namespaces/0"),
        ({"operator": {"namespaces": ["a", "yes: no"]}}, "/operator/namespaces/1"),
        ({"operator": {"namespaces": ["a" * 64]}}, "/operator/namespaces/0"),
        ({"image": {"repository": "registry.example/pinwarden:1.0"}}, "/image/repository"),
        ({"image": {"repository": "x\nhostNetwork: true"}}, "/image/repository"),
        ({"image": {"tag": 1.0}}, "/image/tag"),
        ({"image": {"tag": "1.0\n"}}, "/image/tag"),
        ({"kubeletRoot": "/data\n"}, "/kubeletRoot"),
    ],
    ids=str,
)
def test_value_of_a_wrong_type_or_form_is_rejected_with_its_name(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ClusterError, match=re.escape(f"at '{said}'")):
        chart.render(given=wrong)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"maxUnavailable": 1}, "maxSurge is 10% and maxUnavailable is 1"),
        ({"maxUnavailable": "20%"}, "maxSurge is 10% and maxUnavailable is 20%"),
        ({"maxSurge": 0}, "maxSurge is 0 and maxUnavailable is 0"),
        ({"maxSurge": "0%"}, "maxSurge is 0% and maxUnavailable is 0"),
        ({"maxUnavailable": None}, "maxSurge is 10% and maxUnavailable is 1"),
    ],
    ids=str,
)
def test_roll_out_that_the_server_rejects_is_rejected_with_its_name(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(
        ClusterError, match=re.escape(f"agent.updateStrategy.rollingUpdate: {said}")
    ):
        chart.render(given={"agent": rolling(**given)})


@pytest.mark.parametrize(
    "strategy",
    [
        rolling(maxSurge=0, maxUnavailable=1),
        rolling(maxSurge="0%", maxUnavailable="100%"),
        rolling(maxSurge=3),
        rolling(maxSurge=None, maxUnavailable=None),
        {"updateStrategy": {"rollingUpdate": None}},
        {"updateStrategy": {"type": "OnDelete"}},
        {"updateStrategy": {"type": "OnDelete", "rollingUpdate": {"maxSurge": 0}}},
    ],
    ids=str,
)
def test_every_other_roll_out_is_accepted(server: ControlPlane, strategy: dict[str, Any]) -> None:
    objects = chart.render(
        given={"agent": strategy}, only=["agent/daemonset.yaml", "holder/daemonset.yaml"]
    )
    assert len(objects) == 2
    dry_run(server, objects)


NEEDED = {name: value for name, value in DEFAULTS.items() if name != "imagePullSecrets"}
INNER = {
    (name, key): value
    for name, values in DEFAULTS.items()
    if isinstance(values, dict)
    for key, value in values.items()
}
"""Values of the second level."""
OURS = {
    ("operator", "podDisruptionBudget"),
    ("agent", "updateStrategy"),
    ("gate", "holder"),
    ("gate", "admission"),
    ("gate", "nri"),
    *(("metrics", name) for name in ("podMonitor", "serviceMonitor", "prometheusRule")),
}
"""Maps with values of the chart. Other maps and most lists are a user's: null means empty."""
LISTS = [("networkPolicy", "apiServerPorts")]


def scalars(values: dict[str, Any]) -> list[str]:
    return [name for name, value in values.items() if not isinstance(value, dict | list)]


@pytest.mark.parametrize("name", NEEDED)
def test_null_is_rejected_with_its_name(name: str) -> None:
    with pytest.raises(ClusterError, match=f"at '': missing property '{name}'"):
        chart.render(given={name: None})


@pytest.mark.parametrize(
    "path",
    [
        *(
            path
            for path, value in INNER.items()
            if path in OURS or not isinstance(value, dict | list)
        ),
        *LISTS,
        *((*path, name) for path in sorted(OURS) for name in scalars(INNER[path])),
    ],
    ids=".".join,
)
def test_nested_null_is_rejected_with_its_name(path: tuple[str, ...]) -> None:
    wrong: dict[str, Any] = {path[-1]: None}
    for name in reversed(path[:-1]):
        wrong = {name: wrong}
    with pytest.raises(
        ClusterError, match=f"at '/{'/'.join(path[:-1])}': missing prop.* '{path[-1]}'"
    ):
        chart.render(given=wrong)


def test_map_or_list_that_is_null_is_an_empty_one(server: ControlPlane) -> None:
    nulls: dict[str, Any] = {"imagePullSecrets": None}
    for (name, key), value in INNER.items():
        if isinstance(value, dict | list) and (name, key) not in {*OURS, *LISTS}:
            nulls.setdefault(name, {})[key] = None
    nulls["dashboards"]["enabled"] = True
    nulls["metrics"] = {
        "podMonitor": {"enabled": True, "labels": None},
        "prometheusRule": {"enabled": True},
    }
    nulls["metrics"]["prometheusRule"]["labels"] = None
    objects = chart.render(given=nulls)
    assert "tolerations" not in pod_spec(objects, "pinwarden-agent")
    dry_run(server, objects)


def test_quantity_may_be_a_number() -> None:
    objects = chart.render(given={"shared": {"memory": 268435456}, "operator": {"unknownPods": 0}})
    assert (
        "--shared-memory=268435456" in container(objects, "pinwarden-agent", "accountant")["args"]
    )
    assert "--unknown-pods=0" in container(objects, "pinwarden-operator", "operator")["args"]
    objects = chart.render(given={"shared": {"memory": 0}, "operator": {"unknownPods": "0"}})
    assert "--shared-memory=0" in container(objects, "pinwarden-agent", "accountant")["args"]
    assert "--unknown-pods=0" in container(objects, "pinwarden-operator", "operator")["args"]
    arguments = container(chart.render(), "pinwarden-operator", "operator")["args"]
    assert not any("--unknown-pods" in each for each in arguments)


QUANTITY = SCHEMA["definitions"]["quantity"]["pattern"]


@given(st.from_regex(QUANTITY, fullmatch=True))
def test_quantity_that_the_schema_accepts_is_a_number_of_bytes(text: str) -> None:
    assert 0 <= Quantity(text).bytes <= MAX_BYTES


@given(st.integers(0, 999), st.sampled_from(["", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]))
@example(4, "P")
@example(4, "Pi")
def test_schema_accepts_whole_numbers_with_a_suffix(number: int, suffix: str) -> None:
    assert re.fullmatch(QUANTITY, f"{number}{suffix}")


@pytest.mark.parametrize("text", ["0.5Gi", "1.2Gi", "1.25M", "1e6", "1e+06", "4E9"])
def test_schema_accepts_fractions_and_exponents(text: str) -> None:
    assert re.fullmatch(QUANTITY, text)


@pytest.mark.parametrize(
    "text",
    [
        "1K",
        "1ki",
        "0.5",
        "1e-3",
        "0.001Mi",
        "1e10",
        "-1",
        "+1",
        "1m",
        "",
        "1 Gi",
        "1GiB",
        "5P",
        "5Pi",
        f"{2**52 + 1}",
    ],
)
def test_quantity_that_ends_a_container_at_once_is_rejected_by_the_schema(text: str) -> None:
    assert not re.fullmatch(QUANTITY, text)


def test_no_value_gets_out_of_its_field(server: ControlPlane) -> None:
    odd = '/a,b#}"{&*'
    url = 'https://runbooks.example/a: b #\nevil: "yes"'
    objects = chart.render(
        given={
            "cgroupRoot": odd,
            "kubeletRoot": odd,
            "operator": {"namespaces": ["123", "true"], "priorityClassName": "123"},
            "agent": {"priorityClassName": "0x10", "extraArgs": ["--x=a: b\n- --evil"]},
            "metrics": {"prometheusRule": {"enabled": True, "runbookURL": url}},
        },
        namespace="456",
        release="789",
    )
    assert pod_spec(objects, "pinwarden-operator")["priorityClassName"] == "123"
    assert container(objects, "pinwarden-operator", "operator")["args"][-2:] == [
        *("--namespace=123", "--namespace=true")
    ]
    assert container(objects, "pinwarden-agent", "agent")["args"][-1] == "--x=a: b\n- --evil"
    for name, volume, path in (
        ("pinwarden-agent", "cgroup", odd),
        ("pinwarden-holder", "profiles", f"{odd}/seccomp"),
    ):
        spec = pod_spec(objects, name)
        assert spec["priorityClassName"] == "0x10"
        (found,) = (each["hostPath"]["path"] for each in spec["volumes"] if each["name"] == volume)
        assert found == path
    (rule,) = (each for each in objects if each["kind"] == "PrometheusRule")
    runbooks = [
        each["annotations"]["runbook_url"]
        for group in rule["spec"]["groups"]
        for each in group["rules"]
    ]
    assert runbooks
    assert all(each.startswith(f"{url}#pinwarden") for each in runbooks)
    for each in objects:
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "789"


def test_rules_are_those_of_the_file_but_for_where_runbooks_are() -> None:
    (rule,) = chart.render(
        sets={
            "metrics.prometheusRule.enabled": "true",
            "metrics.prometheusRule.runbookURL": "RUNBOOKS",
        },
        only=["monitoring/prometheusrule.yaml"],
    )
    assert rule["spec"] == yaml.safe_load((chart.CHART / "files" / "alerts.yaml").read_text())


def test_labels_and_annotations_of_a_user_are_merged_with_the_charts_own() -> None:
    labels = {
        "app.kubernetes.io/instance": "mine",
        "app.kubernetes.io/name": "mine",
        "a": "",
        "b": "1",
    }
    annotations = {"kubectl.kubernetes.io/default-container": "gate", "a": ""}
    objects = chart.render(
        given={
            "operator": {"podAnnotations": {"a": ""}},
            "agent": {"podAnnotations": annotations},
            "metrics": {
                "podMonitor": {"enabled": True, "labels": labels},
                "prometheusRule": {"enabled": True, "labels": labels},
            },
            "dashboards": {"enabled": True, "labels": labels},
        }
    )
    kinds = ("PodMonitor", "PrometheusRule", "ConfigMap")
    merged = [each["metadata"]["labels"] for each in objects if each["kind"] in kinds]
    assert len(merged) == 2 + 1 + 4
    for each in merged:
        assert each.items() >= {**labels, "app.kubernetes.io/name": "pinwarden"}.items()
        assert each["app.kubernetes.io/managed-by"] == "Helm"
    found = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["annotations"]
        for each in objects
        if each["kind"] in chart.RUNS and "annotations" in each["spec"]["template"]["metadata"]
    }
    assert found == {
        "pinwarden-agent": annotations,
        "pinwarden-holder": annotations,
        "pinwarden-operator": {"kubectl.kubernetes.io/default-container": "operator", "a": ""},
        "pinwarden-uninstall": {"a": ""},
    }


def test_every_pod_of_pinwarden_tolerates_a_missing_plugin_if_an_annotation_is_given() -> None:
    key = "pinwarden.io/start-ungated"
    nri = {"tolerationAnnotation": key, "tolerationNamespaces": None}
    given: dict[str, Any] = {"gate": {"mode": "Governed", "nri": nri}}
    given |= {name: {"podAnnotations": {key: "false", "a": ""}} for name in ("operator", "agent")}
    objects = chart.render(given=given)
    for name, pod in pods(objects).items():
        assert pod["metadata"]["annotations"].items() >= {key: "true", "a": ""}.items(), name
    assert f"--toleration-annotation={key}" in container(objects, "pinwarden-holder", "nri")["args"]
    assert "--nri-required" in container(objects, "pinwarden-uninstall", "uninstall")["args"]
    (policy,) = toleration_policies(objects)
    (expression,) = policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == [chart.NAMESPACE]


def test_without_a_toleration_annotation_there_is_no_policy_and_no_pod_has_one() -> None:
    objects = chart.render(given={"gate": {"mode": "Governed"}})
    assert not toleration_policies(objects)
    assert "annotations" not in pods(objects)["pinwarden-holder"]["metadata"]
    assert "toleration" not in str(container(objects, "pinwarden-holder", "nri")["args"])
    assert "--nri-required" not in container(objects, "pinwarden-uninstall", "uninstall")["args"]


def toleration_policies(objects: list[chart.Object]) -> list[chart.Object]:
    return [
        each
        for each in objects
        if each["kind"] == "ValidatingAdmissionPolicy" and "toleration" in each["metadata"]["name"]
    ]


def test_pods_of_hooks_may_run_where_the_operator_may() -> None:
    places = {
        "nodeSelector": {"pool": "system", "kubernetes.io/os": "linux"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    }
    annotations = {"sidecar.istio.io/inject": "false", "helm.sh/hook-weight": "7"}
    found = pods(chart.render(given={"operator": {**places, "podAnnotations": annotations}}))
    for name in ("pinwarden-operator", "pinwarden-uninstall", "pinwarden-test"):
        assert found[name]["spec"].items() >= places.items(), name
        assert found[name]["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false", name
    hook = {
        each: text
        for each, text in found["pinwarden-test"]["metadata"]["annotations"].items()
        if "helm" in each
    }
    assert hook == {
        "helm.sh/hook": "test",
        "helm.sh/hook-weight": "0",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }


def pods(objects: list[chart.Object]) -> dict[str, Any]:
    """What each workload makes pods of, and the Pods themselves, by name."""
    made = {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in objects
        if each["kind"] in chart.RUNS
    }
    return made | {each["metadata"]["name"]: each for each in objects if each["kind"] == "Pod"}


def test_every_pod_except_the_holder_reaches_the_api_server_in_a_closed_network() -> None:
    """Includes pods of `helm uninstall` and `helm test`, where another policy denies the rest."""
    objects = chart.render(given={"networkPolicy": {"enabled": True, "apiServerPorts": [7443]}})
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    for policy in policies:
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    ways = {}
    for name, pod in pods(objects).items():
        (policy,) = (
            each
            for each in policies
            if selects(LabelSelector.model_validate(each["podSelector"]), pod["metadata"]["labels"])
        )
        inward = [port["port"] for rule in policy.get("ingress", ()) for port in rule["ports"]]
        ways[name] = (inward, policy.get("egress", []))
    out = [{"ports": [{"port": 7443}]}]
    assert ways == {
        "pinwarden-agent": ([9464], out),
        "pinwarden-holder": ([], []),
        "pinwarden-operator": ([8080], out),
        "pinwarden-test": ([], out),
        "pinwarden-uninstall": ([], out),
    }


def test_agents_token_is_valid_for_an_hour_and_no_longer(server: ControlPlane) -> None:
    """API servers extend tokens of 3607 s to a year, which proves the measured value."""
    (volume,) = (
        each
        for each in pod_spec(chart.render(), "pinwarden-agent")["volumes"]
        if each["name"] == "token"
    )
    (asked,) = (
        each["serviceAccountToken"]["expirationSeconds"]
        for each in volume["projected"]["sources"]
        if "serviceAccountToken" in each
    )
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "namespace": chart.NAMESPACE},
        "spec": {
            "serviceAccountName": "pinwarden-agent",
            "containers": [{"name": "agent", "image": "none"}],
        },
    }
    made = run_kubectl(
        server.kubeconfig,
        "create",
        "-f",
        "-",
        "-o",
        "jsonpath={.metadata.uid}",
        stdin=json.dumps(pod),
    )
    assert made.returncode == 0, made.stderr

    def seconds(duration: int) -> int:
        done = run_kubectl(
            server.kubeconfig,
            *(
                "create",
                "token",
                "pinwarden-agent",
                f"--namespace={chart.NAMESPACE}",
                f"--duration={duration}s",
            ),
            *(
                "--bound-object-kind=Pod",
                "--bound-object-name=agent",
                f"--bound-object-uid={made.stdout}",
            ),
        )
        assert done.returncode == 0, done.stderr
        claims = json.loads(base64.urlsafe_b64decode(done.stdout.split(".")[1] + "=="))
        return int(claims["exp"]) - int(claims["iat"])

    assert seconds(asked) == asked == 3600
    assert seconds(3607) > 300 * 24 * 3600


def test_quota_of_the_page_is_for_the_priority_classes_of_the_chart(
    server: ControlPlane,
) -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    (quota,) = (
        each
        for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        for each in yaml.safe_load_all(block)
        if each["kind"] == "ResourceQuota"
    )
    (scope,) = quota["spec"]["scopeSelector"]["matchExpressions"]
    classes = {
        each["spec"]["template"]["spec"]["priorityClassName"]
        for each in chart.render()
        if each["kind"] in chart.RUNS
    }
    assert set(scope["values"]) == classes
    dry_run(server, [quota])


def test_page_gives_helm_the_time_that_the_hook_may_take() -> None:
    """The Job's own deadline, and a minute for its rights and its pod."""
    page = (ROOT / "docs" / "install.md").read_text()
    (said,) = re.findall(r"at least twice `uninstall\.timeoutSeconds` and (\d+) s", page)
    for waiting in (usual := DEFAULTS["uninstall"]["timeoutSeconds"], 3600):
        (job,) = chart.render(
            given={"uninstall": {"timeoutSeconds": waiting}}, only=["uninstall/job.yaml"]
        )
        assert 2 * waiting + int(said) == job["spec"]["activeDeadlineSeconds"] + 60
    for name in ("install.md", "uninstall.md"):
        assert (
            f"--timeout {(2 * usual + int(said)) // 60}m" in (ROOT / "docs" / name).read_text()
        ), name


def test_in_another_namespace_nothing_names_the_usual_one() -> None:
    assert chart.NAMESPACE not in yaml.safe_dump_all(chart.render(namespace="elsewhere"))


def test_without_gate_and_accountant_nothing_of_them_is_left() -> None:
    objects = chart.render(sets={"gate.enabled": "false", "shared.enabled": "false"})
    (agent,) = (each for each in objects if each["kind"] == "DaemonSet")
    assert [each["name"] for each in agent["spec"]["template"]["spec"]["containers"]] == ["agent"]
    policies = [
        each["metadata"]["name"] for each in objects if each["kind"].endswith("AdmissionPolicy")
    ]
    assert policies == ["pinwarden-agent-own-node"]
    capabilities = [
        each["securityContext"]["capabilities"]
        for each in agent["spec"]["template"]["spec"]["containers"]
    ]
    assert capabilities == [{"drop": ["ALL"], "add": ["SYS_RESOURCE"]}]


def test_readme_is_that_of_the_values() -> None:
    assert (chart.CHART / "README.md").read_text() == docs.chart.readme(), "run `make docs`"


def test_plain_manifests_are_those_of_the_chart() -> None:
    kept = {path.name: path.read_text() for path in (ROOT / "manifests").iterdir()}
    assert kept == docs.chart.manifests(), "run `make manifests`"


def test_plain_manifests_are_accepted_by_the_server(server: ControlPlane) -> None:
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
