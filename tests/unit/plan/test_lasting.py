"""A selector of lasting labels matches the next version of a workload, whatever added them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.plan.lasting import is_changing_key, lasting, looks_like, names_something

CHANGING = (
    "helm.sh/chart",
    "chart",
    "version",
    "app.kubernetes.io/version",
    "airflow_version",
    "spark-version",
    "pod-template-hash",
    "rollouts-pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "leaderworkerset.sigs.k8s.io/template-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "kubevirt.io/created-by",
    "kubevirt.io/nodeName",
    "kubevirt.io/migrationJobUID",
    "spark-app-selector",
    "spark-exec-id",
    "sparkoperator.k8s.io/submission-id",
    "run_id",
    "tekton.dev/pipelineRun",
    "serving.knative.dev/revision",
    "serving.knative.dev/configurationGeneration",
    "topology.kubernetes.io/zone",
    "kubernetes.io/hostname",
)
LASTING = (
    "app",
    "run",
    "release",
    "tier",
    "k8s-app",
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "serving.knative.dev/service",
    "kubevirt.io/domain",
    "dag_id",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
KUBERNETES_RANDOM = "bcdfghjklmnpqrstvwxz2456789"

names = st.sampled_from(
    ("db", "redis-master", "web-2", "s3-gateway", "k8s", "https", "facade", "postgres-16", "oauth2")
)
versions = st.builds(
    "{}{}.{}{}".format,
    st.sampled_from(("", "v", "db-", "redis-v", "release_")),
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from(("", ".1", ".0-rc.2", "-alpine", "_b3", "-r7")),
)
hashes = st.text("0123456789abcdef", min_size=7, max_size=40).filter(
    lambda text: (
        any(letter.isdigit() for letter in text) and any(letter.isalpha() for letter in text)
    )
)
suffixes = st.text(KUBERNETES_RANDOM, min_size=5, max_size=5).filter(
    lambda text: (
        any(letter.isdigit() for letter in text) and any(letter.isalpha() for letter in text)
    )
)
changing_values = st.one_of(
    versions,
    hashes,
    st.uuids().map(str),
    st.builds("{}-{}".format, names, suffixes),
    st.integers(10**6, 10**12).map(str),
    st.dates().map(str),
)


@pytest.mark.parametrize("key", CHANGING)
def test_keys_of_versions_revisions_instances_runs_and_nodes_change(key: str) -> None:
    assert is_changing_key(key)


@pytest.mark.parametrize("key", LASTING)
def test_keys_of_names_last(key: str) -> None:
    assert not is_changing_key(key)


@given(names)
def test_names_do_not_look_like_versions(name: str) -> None:
    assert looks_like(name) == ""


@given(st.lists(st.text(LETTERS, min_size=1, max_size=12), min_size=1, max_size=3).map("-".join))
def test_words_look_like_hashes_only_if_hexadecimal(name: str) -> None:
    assert looks_like(name) == "" or set(name) <= set("abcdef")


@given(changing_values)
def test_versions_dates_counters_and_hashes_are_recognised(value: str) -> None:
    assert looks_like(value)


@given(
    st.dictionaries(st.sampled_from(LASTING), names),
    *[st.dictionaries(st.sampled_from(CHANGING), st.text(LETTERS, max_size=8)) for _ in range(2)],
    *[st.dictionaries(st.text(LETTERS, min_size=1, max_size=4), changing_values) for _ in range(2)],
)
def test_lasting_labels_are_in_the_next_version(
    kept: dict[str, str],
    old_keys: dict[str, str],
    new_keys: dict[str, str],
    old_values: dict[str, str],
    new_values: dict[str, str],
) -> None:
    selector = lasting({**old_values, **old_keys, **kept})
    assert selector == kept
    assert selector.items() <= {**new_values, **new_keys, **kept}.items()


def test_labels_of_a_tool_name_no_workload() -> None:
    assert not names_something({})
    assert not names_something({"spark-role": "driver", "app.kubernetes.io/managed-by": "Helm"})
    assert names_something({"app": "db", "spark-role": "driver"})
