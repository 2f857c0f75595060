"""The models read and write stored objects without loss, and generate the CRDs on disk."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pinwarden.api.crd import KINDS, crd, render
from pinwarden.api.nodepinconfig import (
    DenialReport,
    NodeLimit,
    NodePinConfigSpec,
    NodePinConfigStatus,
    PodReport,
)
from pinwarden.api.pinlimit import ClusterPinLimit, Level, PinLimit, Resource, Scope

ROOT = Path(__file__).parents[3]
CRDS = [ROOT / "crds", ROOT / "charts" / "pinwarden" / "crds"]

limits = st.builds(
    NodeLimit,
    name=st.from_regex(r"[a-z]{1,9}/[a-z]{1,9}", fullmatch=True),
    uid=st.uuids().map(str),
    scope=st.sampled_from(Scope),
    limit=st.integers(0, 2**52),
    grant=st.none() | st.integers(0, 2**52),
)


@pytest.mark.parametrize("folder", CRDS, ids=["crds", "chart"])
@pytest.mark.parametrize("kind", KINDS)
def test_crd_on_disk_is_generated_from_models(kind: type[Resource], folder: Path) -> None:
    assert (folder / f"{kind.plural}.yaml").read_text() == render(kind), "run `make crds`"


@pytest.mark.parametrize("kind", KINDS)
def test_crd_is_kept_if_treated_as_object_of_the_chart(
    kind: type[Resource],
) -> None:
    """Argo CD reads Helm's annotation; without it, all limits and groups end with the CRDs."""
    assert crd(kind)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize("folder", CRDS, ids=["crds", "chart"])
def test_no_other_crd_is_on_disk(folder: Path) -> None:
    assert {path.stem for path in folder.glob("*.yaml")} == {kind.plural for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_list_item_has_no_default(kind: type[Resource]) -> None:
    """Clients compare lists as a whole: https://github.com/argoproj/argo-cd/issues/28724."""

    def defaults(schema: object, inside: bool = False) -> int:
        if isinstance(schema, list):
            return sum(defaults(part, inside) for part in schema)
        if not isinstance(schema, dict):
            return 0
        own = 1 if inside and "default" in schema and "type" in schema else 0
        return own + sum(defaults(part, inside or key == "items") for key, part in schema.items())

    assert defaults(crd(kind)["spec"]["versions"][0]["schema"]) == 0


def test_limit_needs_selector_and_amount() -> None:
    with pytest.raises(ValidationError) as error:
        PinLimit.model_validate({"metadata": {"name": "a"}, "spec": {}})
    assert {".".join(map(str, part["loc"])) for part in error.value.errors()} == {
        "spec.podSelector",
        "spec.limit",
    }


def test_ceiling_selects_everything_by_default() -> None:
    ceiling = ClusterPinLimit.model_validate({"metadata": {"name": "a"}, "spec": {"limit": "1Gi"}})
    assert (
        ceiling.spec.namespace_selector == ceiling.spec.node_selector == ceiling.spec.pod_selector
    )
    assert not ceiling.spec.pod_selector.match_labels


@pytest.mark.rule("H1")
def test_levels_are_ranked_from_strongest() -> None:
    assert sorted(Level, key=lambda level: level.rank) == [
        "Deny",
        "Kill",
        "Converge",
        "Observe",
    ]


@given(st.lists(limits, max_size=4, unique_by=lambda limit: limit.name))
def test_spec_survives_the_wire(known: list[NodeLimit]) -> None:
    spec = NodePinConfigSpec.model_validate({"limits": [limit.to_wire() for limit in known]})
    assert NodePinConfigSpec.parse(spec.to_wire()) == (spec, [])


@given(
    limits,
    limits,
    st.sampled_from(
        [{"scope": "Galaxy"}, {"novelty": 1}, {"limit": "much"}, {"counting": "Twice"}]
    ),
)
def test_limit_of_another_version_is_set_aside_and_others_kept(
    known: NodeLimit, strange: NodeLimit, change: dict[str, object]
) -> None:
    pod = {"uid": "u", "limits": [strange.name]}
    raw = {"limits": [known.to_wire(), strange.to_wire() | change], "pods": [pod]}
    spec, unsupported = NodePinConfigSpec.parse(raw)
    assert spec.limits == [known]
    assert [(limit.name, limit.uid) for limit in unsupported] == [(strange.name, strange.uid)]
    assert next(iter(change)) in unsupported[0].message
    assert spec.pods[0].limits == [strange.name], (
        "a pod held by an unknown limit is never taken for free"
    )


@given(limits, st.integers(0, 2**52))
def test_hash_changes_with_the_constraint(limit: NodeLimit, amount: int) -> None:
    other = limit.model_copy(update={"limit": amount})
    assert (other.hash == limit.hash) == (amount == limit.limit)


DENIAL = {
    "number": 1,
    "time": "2026-11-24T12:00:00.123456Z",
    "pod": "p1",
    "container": "main",
    "process": "db",
    "pid": 7,
    "source": "Mlock",
}
POD = {"uid": "p1", "vmLck": 0, "vmPin": 0, "peak": 0, "processes": 1, "level": "Deny"}


@pytest.mark.rule("H2")
def test_unseen_denials_are_absent_and_no_denials_are_an_empty_list() -> None:
    assert "denials" not in PodReport.model_validate(POD).to_wire()
    assert PodReport.model_validate({**POD, "denials": []}).to_wire()["denials"] == []
    assert "denialsDropped" not in NodePinConfigStatus().to_wire()
    wire = DenialReport.model_validate(DENIAL).to_wire()
    assert DenialReport.model_validate(wire).to_wire() == wire
    assert not {"asked", "used", "limit"} & wire.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"time": "2026-11-24T12:00:00"},
        {"process": "x" * 17},
        {"asked": 2**62 + 1},
        {"number": 0},
        {"pid": 0},
    ],
)
def test_denial_has_bounded_size_and_time_zone(
    change: dict[str, object],
) -> None:
    DenialReport.model_validate(DENIAL)
    with pytest.raises(ValidationError):
        DenialReport.model_validate({**DENIAL, **change})


def test_longest_list_of_denials_stays_small() -> None:
    """At most two thirds of a status, whose rest has 10 KB."""
    longest = {
        "pod": "0" * 36,
        "container": "c" * 63,
        "process": "p" * 16,
        "pid": 2**22,
        "asked": 2**40,
        "used": 2**40,
        "limit": 2**40,
        "name": f"{'n' * 63}/{'l' * 63}",
        "uid": "0" * 36,
    }
    listed = [
        DenialReport.model_validate({**DENIAL, **longest, "number": 2**40 + i}) for i in range(32)
    ]
    assert len(NodePinConfigStatus(recent_denials=listed).model_dump_json(by_alias=True)) < 20_000
