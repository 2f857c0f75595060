"""Answers of the real API server to good and bad manifests.

A bad manifest is rejected with a message that names its field. `kubectl` validates strictly, as for
users: an unknown field is an error.
"""

import json
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from pinwarden.api.nodepinconfig import NodePinConfig, NodePinConfigStatus
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.api.quantity import Quantity

from ..waiting import eventually
from .conftest import ROOT, Kubectl

pytestmark = pytest.mark.usefixtures("crds")
EMPTY: dict[str, Any] = {}


def manifest(kind: str, namespace: str, spec: Any, name: str = "t") -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if kind == "PinLimit" else {})
    return {"apiVersion": "pinwarden.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def expression(operator: Any, values: Any = None, key: str = "app") -> dict[str, Any]:
    return {
        "matchExpressions": [
            {"key": key, "operator": operator} | ({} if values is None else {"values": values})
        ]
    }


def pinl(**fields: Any) -> dict[str, Any]:
    return {"podSelector": {}, "limit": "64Mi", **fields}


BAD: list[tuple[str, Any, str]] = [
    ("PinLimit", EMPTY, "spec.limit"),
    ("PinLimit", {"limit": "64Mi"}, "spec.podSelector"),
    ("PinLimit", {"podSelector": {}}, "spec.limit"),
    ("PinLimit", "64Mi", "spec"),
    ("PinLimit", pinl(limit="-1"), "spec.limit"),
    ("PinLimit", pinl(limit=-64), "spec.limit"),
    ("PinLimit", pinl(limit="1500m"), "spec.limit"),
    ("PinLimit", pinl(limit="0.5"), "spec.limit"),
    ("PinLimit", pinl(limit=0.5), "spec.limit"),
    ("PinLimit", pinl(limit="0.1Ki"), "spec.limit"),
    ("PinLimit", pinl(limit="5Pi"), "spec.limit"),
    ("PinLimit", pinl(limit="99Ei"), "spec.limit"),
    ("PinLimit", pinl(limit="64MB"), "spec.limit"),
    ("PinLimit", pinl(limit="64 Mi"), "spec.limit"),
    ("PinLimit", pinl(limit="unlimited"), "spec.limit"),
    ("PinLimit", pinl(limit=""), "spec.limit"),
    ("PinLimit", pinl(limit=None), "spec.limit"),
    ("PinLimit", pinl(limit=True), "spec.limit"),
    ("PinLimit", pinl(limit={"bytes": 1}), "spec.limit"),
    ("PinLimit", pinl(limit="1" * 40), "spec.limit"),
    ("PinLimit", pinl(scope="Node"), "spec.scope"),
    ("PinLimit", pinl(scope="pod"), "spec.scope"),
    ("PinLimit", pinl(scope="Pod", containers=["main"]), "spec.containers"),
    ("PinLimit", pinl(containers=["main"]), "spec.containers"),
    ("PinLimit", pinl(scope="Container", containers=["Main!"]), "spec.containers[0]"),
    ("PinLimit", pinl(scope="Container", containers="main"), "spec.containers"),
    ("PinLimit", pinl(scope="Container", containers=["c"] * 65), "spec.containers"),
    ("PinLimit", pinl(counting="Once"), "spec.counting"),
    ("PinLimit", pinl(sources=["mlock"]), "spec.sources[0]"),
    ("PinLimit", pinl(sources="Mlock"), "spec.sources"),
    ("PinLimit", pinl(enforcement="Warn"), "spec.enforcement"),
    ("PinLimit", pinl(minimumLevel="Strict"), "spec.minimumLevel"),
    ("PinLimit", pinl(contention="Fair"), "spec.contention"),
    ("PinLimit", pinl(onOvershoot="Evict"), "spec.onOvershoot"),
    ("PinLimit", pinl(onOvershoot="Kill", enforcement="Audit"), "spec.onOvershoot"),
    ("PinLimit", pinl(grant="yes"), "spec.grant"),
    ("PinLimit", pinl(grant=True, enforcement="Audit"), "spec.grant"),
    ("PinLimit", pinl(maxGrant="1Mi"), "spec.maxGrant"),
    ("PinLimit", pinl(limits="1Mi"), "spec.limits"),
    ("PinLimit", pinl(podSelector={"app": "db"}), "spec.podSelector.app"),
    ("PinLimit", pinl(podSelector=None), "spec.podSelector"),
    ("PinLimit", pinl(podSelector=["app"]), "spec.podSelector"),
    (
        "PinLimit",
        pinl(podSelector={"matchLabels": {"app": "a b"}}),
        "spec.podSelector.matchLabels.app",
    ),
    ("PinLimit", pinl(podSelector={"matchLabels": {"-app": "a"}}), "spec.podSelector.matchLabels"),
    (
        "PinLimit",
        pinl(podSelector={"matchLabels": {"app": "a" * 64}}),
        "spec.podSelector.matchLabels.app",
    ),
    (
        "PinLimit",
        pinl(podSelector=expression("Equals", ["a"])),
        "spec.podSelector.matchExpressions[0].operator",
    ),
    ("PinLimit", pinl(podSelector=expression("In")), "spec.podSelector.matchExpressions[0]"),
    (
        "PinLimit",
        pinl(podSelector=expression("In", [])),
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "PinLimit",
        pinl(podSelector=expression("Exists", ["a"])),
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "PinLimit",
        pinl(podSelector=expression("In", ["a"], key="")),
        "spec.podSelector.matchExpressions[0].key",
    ),
    ("ClusterPinLimit", EMPTY, "spec.limit"),
    ("ClusterPinLimit", {"limit": "1Mi", "scope": "Cluster"}, "spec.scope"),
    ("ClusterPinLimit", {"limit": "1Mi", "scope": "Node", "grant": True}, "spec.grant"),
    ("ClusterPinLimit", {"limit": "1Mi", "scope": "Node", "containers": ["a"]}, "spec.containers"),
    ("ClusterPinLimit", {"limit": "1Mi", "maxGrant": "2Mi"}, "spec.maxGrant"),
    ("ClusterPinLimit", {"limit": "1Mi", "maxGrant": "-2Mi"}, "spec.maxGrant"),
    (
        "ClusterPinLimit",
        {"limit": "1Mi", "nodeSelector": expression("Gt", ["1"])},
        "spec.nodeSelector",
    ),
    (
        "ClusterPinLimit",
        {"limit": "1Mi", "namespaceSelector": {"matchNames": ["a"]}},
        "spec.namespaceSelector.matchNames",
    ),
    ("NodePinConfig", {"mode": "Paused"}, "spec.mode"),
    (
        "NodePinConfig",
        {"limits": [{"name": "a/b", "uid": "u", "scope": "Pod"}]},
        "spec.limits[0].limit",
    ),
]


@pytest.mark.parametrize(
    ("kind", "spec", "field"), BAD, ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(BAD)]
)
def test_bad_manifest_is_rejected_with_its_field(
    kubectl: Kubectl, kind: str, spec: Any, field: str
) -> None:
    body = json.dumps(manifest(kind, "default", spec))
    done = kubectl("create", "--dry-run=server", "-f", "-", stdin=body, check=False)
    assert done.returncode != 0, done.stdout
    assert field in done.stderr


SPELLINGS = [
    *(
        "64MB",
        "6GiB",
        "64mb",
        "64 Mi",
        " 64Mi",
        "64gi",
        "64K",
        "1.5gb",
        "64B",
        "64 bytes",
        "Mi",
        "",
        "lots",
    ),
    *("64m", "500m", "1500m", "0.1Ki", "1.5", "1e-3", "1u", "-1", "-1Mi", "unlimited", "-inf"),
    *("0x4000000", "1_000_000", "64,5Mi", "5e", "1.2.3Mi"),
]


@pytest.mark.parametrize("amount", SPELLINGS)
def test_typing_error_is_rejected_with_the_same_sentence_as_in_the_program(
    kubectl: Kubectl, amount: str
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the sentence is compared below
        _ = Quantity(amount).bytes
    body = json.dumps(manifest("PinLimit", "default", pinl(limit=amount)))
    done = kubectl("create", "--dry-run=server", "-f", "-", stdin=body, check=False)
    assert done.returncode != 0
    _, found, message = done.stderr.strip().partition(f'spec.limit: Invalid value: "{amount}": ')
    assert found, done.stderr
    assert str(raised.value).endswith(message)
    assert (done.stderr.count("Invalid value"), done.stderr.count("\n")) == (1, 1), done.stderr


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("64MB", "write 64M (powers of 1000) or 64Mi (powers of 1024)"),
        ("64m", "m is a thousandth: write 64M (powers of 1000) or 64Mi (powers of 1024)"),
        ("5Pi", "must be at most 4Pi, the range of a physical address of 52 bits"),
    ],
)
def test_misspelled_value_is_rejected_with_the_right_spelling(
    kubectl: Kubectl, amount: str, message: str
) -> None:
    body = json.dumps(manifest("PinLimit", "default", pinl(limit=amount)))
    done = kubectl("create", "--dry-run=server", "-f", "-", stdin=body, check=False)
    assert f'spec.limit: Invalid value: "{amount}": {message}\n' in done.stderr


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        *(
            ("64M", "64M"),
            ("1.2Gi", "1.2Gi"),
            ("0.5Gi", "0.5Gi"),
            ("1288490188800m", "1288490188800m"),
        ),
        *(('"1e6"', "1e6"), ("1e6", 1000000), ("65536.0", 65536), ("67108864", 67108864)),
        *(('"67108864"', "67108864"), ("0x4000000", 67108864), ("0", 0)),
    ],
)
def test_amount_is_accepted_in_every_usual_form_of_yaml(
    kubectl: Kubectl, written: str, stored: str | int
) -> None:
    """kubectl makes JSON of YAML, and whole numbers of its floats and hexadecimal numbers."""
    head = (
        "{apiVersion: pinwarden.io/v1alpha1, kind: PinLimit, "
        "metadata: {name: t, namespace: default}"
    )
    text = f"{head}, spec: {{podSelector: {{}}, limit: {written}}}}}"
    got = json.loads(
        kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=text).stdout
    )
    assert got["spec"]["limit"] == stored
    assert PinLimit.model_validate(got).spec.limit.bytes >= 0


def test_float_of_another_client_is_rejected_with_the_right_form(
    kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    """The server's CEL sees no float where an integer or a text may stand."""
    body = tmp_path / "float.json"
    body.write_text(json.dumps(manifest("PinLimit", namespace, pinl(limit=64.0))))
    path = f"/apis/pinwarden.io/v1alpha1/namespaces/{namespace}/pinlimits"
    done = kubectl("create", "--raw", path, "-f", str(body), check=False)
    assert done.returncode != 0
    assert "expected XIntOrString value to be either a string or integer" in done.stderr
    assert (
        done.stderr.count("must be a number of bytes with a suffix such as Ki, Mi or Gi, or none")
        == 1
    )


@pytest.mark.parametrize("amount", [1, 64, "64", "4095", "1Ki", "0.001Mi"])
def test_amount_below_a_page_is_rejected(kubectl: Kubectl, amount: str | int) -> None:
    body = json.dumps(manifest("PinLimit", "default", pinl(limit=amount)))
    done = kubectl("create", "--dry-run=server", "-f", "-", stdin=body, check=False)
    assert "must be 0 or at least a page (4Ki): use a suffix such as Ki, Mi or Gi\n" in done.stderr


APP = {"matchLabels": {"app": "db"}}
NONSENSE: list[tuple[str, Any, str]] = [
    ("PinLimit", pinl(scope="Container", containers=["a", "b", "a"]), "name each container once"),
    (
        "PinLimit",
        pinl(scope="Container", containers=[]),
        "spec.containers in body should have at least 1 items",
    ),
    ("PinLimit", pinl(sources=["Mlock", "Mlock"]), "name each source once"),
    ("PinLimit", pinl(sources=[]), "spec.sources in body should have at least 1 items"),
    (
        "PinLimit",
        pinl(podSelector=APP | expression("In", ["web"])),
        "spec.podSelector.matchExpressions",
    ),
    (
        "PinLimit",
        pinl(podSelector=APP | expression("NotIn", ["db"])),
        "spec.podSelector.matchExpressions",
    ),
    (
        "PinLimit",
        pinl(podSelector=APP | expression("DoesNotExist")),
        "spec.podSelector.matchExpressions",
    ),
    (
        "ClusterPinLimit",
        {
            "limit": "1Mi",
            "nodeSelector": {
                "matchExpressions": [
                    {"key": "a", "operator": "Exists"},
                    {"key": "a", "operator": "DoesNotExist"},
                ]
            },
        },
        "a key both exists and does not",
    ),
    (
        "SharedMemoryGroup",
        {
            "backing": {"memfd": {"name": "r"}},
            "members": [{"podSelector": APP}, {"podSelector": APP}],
        },
        "give each podSelector once",
    ),
]


@pytest.mark.parametrize(("kind", "spec", "message"), NONSENSE, ids=[case[2] for case in NONSENSE])
def test_nonsense_is_rejected_at_admission(
    kubectl: Kubectl, namespace: str, kind: str, spec: Any, message: str
) -> None:
    body = json.dumps(manifest(kind, namespace, spec))
    done = kubectl(
        "create", "-n", namespace, "--dry-run=server", "-f", "-", stdin=body, check=False
    )
    assert done.returncode != 0, done.stdout
    assert message in done.stderr


@pytest.mark.parametrize(
    "selector",
    [
        APP | expression("In", ["db", "web"]),
        APP | expression("NotIn", ["web"]),
        APP | expression("Exists"),
        APP | expression("DoesNotExist", key="old"),
        {
            "matchExpressions": [
                {"key": "a", "operator": "DoesNotExist"},
                {"key": "a", "operator": "NotIn", "values": ["b"]},
            ]
        },
    ],
)
def test_selector_that_can_match_is_accepted(kubectl: Kubectl, selector: Any) -> None:
    body = json.dumps(manifest("PinLimit", "default", pinl(podSelector=selector)))
    kubectl("create", "--dry-run=server", "-f", "-", stdin=body)


def succeeded(done: CompletedProcess[str]) -> bool:
    return done.returncode == 0


def test_stored_objects_that_are_rejected_today_stay_updatable(
    kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    """Validation ratchets: what an update leaves alone is not judged again."""
    stored = [
        manifest("PinLimit", namespace, pinl(sources=["Mlock", "Mlock"], limit="64"), "twice"),
        manifest(
            "PinLimit",
            namespace,
            pinl(sources=[], podSelector=APP | expression("DoesNotExist")),
            "empty",
        ),
    ]
    crd = yaml.safe_load((ROOT / "crds" / "pinlimits.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    strict = json.dumps(crd)
    version["schema"]["openAPIV3Schema"]["properties"]["spec"] = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    try:
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(crd))
        for text in map(json.dumps, stored):
            eventually(partial(kubectl, "create", "-f", "-", stdin=text, check=False), succeeded)
    finally:
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=strict)
    probe = json.dumps(manifest("PinLimit", namespace, pinl(sources=[]), "probe"))
    create = partial(kubectl, "create", "--dry-run=server", "-f", "-", stdin=probe, check=False)
    eventually(create, lambda done: not succeeded(done))

    target = ("-n", namespace, "--type=merge", "-p")
    for name in ("twice", "empty"):
        kubectl("patch", "pinl", name, *target, '{"spec": {"contention": "Reserve"}}')
        kubectl("label", "pinl", name, "-n", namespace, "touched=yes")
        kubectl(
            "patch", "pinl", name, "--subresource=status", *target, '{"status": {"matchedPods": 1}}'
        )
    raw = json.loads(kubectl("get", "pinl", "empty", "-n", namespace, "-o", "json").stdout)
    assert (
        PinLimit.model_validate(
            {key: raw[key] for key in ("kind", "metadata", "spec")}
        ).spec.sources
        == []
    )
    for change in ({"sources": ["Rdma", "Rdma"]}, {"limit": "65"}):
        patch = json.dumps({"spec": change})
        assert kubectl("patch", "pinl", "twice", *target, patch, check=False).returncode != 0


def test_bad_max_grant_is_compared_with_nothing(kubectl: Kubectl) -> None:
    body = json.dumps(manifest("ClusterPinLimit", "default", {"limit": "1Mi", "maxGrant": "64MB"}))
    done = kubectl("create", "--dry-run=server", "-f", "-", stdin=body, check=False)
    assert 'spec.maxGrant: Invalid value: "64MB": write 64M' in done.stderr
    assert done.stderr.count("Invalid value") == 1, done.stderr


def test_name_that_is_too_long_is_rejected(kubectl: Kubectl, namespace: str) -> None:
    bad = manifest("PinLimit", namespace, pinl(), name="n" * 64)
    done = kubectl("create", "-f", "-", stdin=json.dumps(bad), check=False)
    assert done.returncode != 0
    assert "metadata.name must be at most 63 characters" in done.stderr


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("PinLimit", pinl()),
    ("PinLimit", pinl(limit=0)),
    ("PinLimit", pinl(limit="1.5Gi")),
    (
        "PinLimit",
        pinl(limit="1e6", sources=["Mlock", "IoUring"], minimumLevel="Deny", contention="Reserve"),
    ),
    (
        "PinLimit",
        pinl(scope="Container", containers=["main"], podSelector=expression("NotIn", ["a", ""])),
    ),
    (
        "PinLimit",
        pinl(
            podSelector={"matchLabels": {"example.com/app": "db", "tier": ""}}
            | expression("DoesNotExist")
        ),
    ),
    ("ClusterPinLimit", {"limit": "4Pi"}),
    ("ClusterPinLimit", {"limit": "1Gi", "scope": "Node", "nodeSelector": expression("Exists")}),
    (
        "ClusterPinLimit",
        {"limit": "1Gi", "maxGrant": "1024Mi", "namespaceSelector": expression("In", ["a"])},
    ),
]


@pytest.mark.parametrize(
    ("kind", "spec"), GOOD, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(GOOD)]
)
def test_model_server_model_loses_nothing(
    kubectl: Kubectl, namespace: str, kind: str, spec: dict[str, Any]
) -> None:
    model = PinLimit if kind == "PinLimit" else ClusterPinLimit
    sent = model.model_validate(manifest(kind, namespace, spec, name=namespace))
    kubectl("create", "-f", "-", stdin=json.dumps(sent.to_wire()))
    got = model.model_validate_json(
        kubectl("get", kind, namespace, "-n", namespace, "-o", "json").stdout
    )
    assert got.spec == sent.spec
    assert got.metadata.generation == 1


def test_server_fills_in_the_models_defaults(kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "-f", "-", stdin=json.dumps(manifest("PinLimit", namespace, pinl())))
    got = json.loads(kubectl("get", "pinl", "t", "-n", namespace, "-o", "json").stdout)["spec"]
    model = PinLimit.model_validate(manifest("PinLimit", namespace, pinl())).spec.to_wire()
    assert got == {key: value for key, value in model.items() if value != []} | {
        "podSelector": {},
    }


def test_explain_and_columns_are_readable(kubectl: Kubectl, namespace: str) -> None:
    assert "0 forbids" in kubectl("explain", "pinlimit.spec.limit").stdout
    kubectl("create", "-f", "-", stdin=json.dumps(manifest("PinLimit", namespace, pinl())))
    header, row = kubectl("get", "pinl", "-n", namespace).stdout.splitlines()
    assert header.split() == [
        "NAME",
        "LIMIT",
        "SCOPE",
        "MODE",
        "PODS",
        "PINNED",
        "DENIED",
        "ENFORCED",
        "AGE",
    ]
    assert row.split()[:4] == ["t", "64Mi", "Pod", "Enforce"]


def test_status_is_a_subresource(kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "-f", "-", stdin=json.dumps(manifest("PinLimit", namespace, pinl())))
    patch = json.dumps({"spec": {"limit": "1Mi"}, "status": {"matchedPods": 3}})
    target = ["pinl", "t", "-n", namespace, "--type=merge", "-p", patch]
    kubectl("patch", *target, "--subresource=status")
    got = PinLimit.model_validate_json(
        kubectl("get", "pinl", "t", "-n", namespace, "-o", "json").stdout
    )
    assert got.spec.limit == "64Mi"
    assert got.status is not None
    assert got.status.matched_pods == 3


DENIAL = {
    "number": 1,
    "time": "2026-11-24T12:00:00.123456Z",
    "pod": "u1",
    "container": "main",
    "process": "\x01\n\u202e",
    "pid": 7,
    "source": "Mlock",
    "asked": 2**62,
}


@pytest.mark.rule("H2")
def test_denials_of_a_node_are_stored_unchanged_and_zero_is_not_unknown(
    kubectl: Kubectl, namespace: str
) -> None:
    kubectl(
        "create", "-f", "-", stdin=json.dumps(manifest("NodePinConfig", "", {}, name=namespace))
    )
    pod = {"uid": "u1", "vmLck": 0, "vmPin": 0, "peak": 0, "processes": 1, "level": "Deny"}
    status = {
        "recentDenials": [DENIAL | {"number": number} for number in range(1, 33)],
        "pods": [
            pod,
            pod | {"uid": "u2", "denials": []},
            pod | {"denials": [{"uid": "l1", "count": 2}]},
        ],
    }
    target = ["npc", namespace, "--type=merge", "--subresource=status", "-p"]
    kubectl("patch", *target, json.dumps({"status": status}))
    got = NodePinConfig.model_validate_json(
        kubectl("get", "npc", namespace, "-o", "json").stdout
    ).status
    assert got == NodePinConfigStatus.model_validate(status)
    assert got is not None
    assert [pod.denials if pod.denials is None else len(pod.denials) for pod in got.pods] == [
        None,
        0,
        1,
    ]
    assert got.denials_dropped is None


@pytest.mark.parametrize(
    "change",
    [{"process": "x" * 17}, {"asked": 2**62 + 2**10}, {"time": "noon"}, {"message": "x" * 257}],
)
def test_denials_of_a_node_have_a_bounded_size(
    kubectl: Kubectl, namespace: str, change: dict[str, Any]
) -> None:
    kubectl(
        "create", "-f", "-", stdin=json.dumps(manifest("NodePinConfig", "", {}, name=namespace))
    )
    for listed in ([DENIAL | change], [DENIAL] * 33):
        patch = json.dumps({"status": {"recentDenials": listed}})
        done = kubectl(
            "patch",
            "npc",
            namespace,
            "--type=merge",
            "--subresource=status",
            "-p",
            patch,
            check=False,
        )
        assert done.returncode != 0
        assert "status.recentDenials" in done.stderr


def test_applying_a_nodes_spec_reverts_manual_changes(kubectl: Kubectl, namespace: str) -> None:
    spec = {"mode": "Active", "pods": [{"uid": "u1", "limits": []}]}
    desired = json.dumps(manifest("NodePinConfig", "", spec, name=namespace))
    apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=pinwarden-operator",
        "-f",
        "-",
    ]
    kubectl(*apply, stdin=desired)
    hand = json.dumps({"spec": {"mode": "Release", "unknownPods": 1, "pods": []}})
    kubectl("patch", "npc", namespace, "--type=merge", "-p", hand)
    kubectl(*apply, stdin=desired)
    got = NodePinConfig.model_validate_json(kubectl("get", "npc", namespace, "-o", "json").stdout)
    assert got.spec.to_wire() == NodePinConfig.model_validate_json(desired).spec.to_wire()


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name
)
def test_examples_are_accepted(kubectl: Kubectl, namespace: str, example: Path) -> None:
    created = kubectl("create", "-n", namespace, "--dry-run=server", "-f", str(example)).stdout
    assert created.count("created") == len(list(yaml.safe_load_all(example.read_text())))
