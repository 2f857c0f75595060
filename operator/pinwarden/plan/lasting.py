"""Find the labels of a pod for a selector that matches its next version too.

Charts and controllers add labels of a version, chart, revision, instance, run or node to pods. Such
a label has a known key, or its value looks like a version, a date, a counter or a hash. With such a
label, a selector matches nothing after the next release. Without a permanent label, a selector
matches more pods, which a recommendation says. So a doubtful label is left out.
"""

import re
from collections.abc import Mapping
from typing import Final

_CONTROLLERS: Final = frozenset(
    {
        "controller-uid",
        "job-name",
        "spark-app-selector",
        "spark-exec-id",
        "spark-exec-resourceprofile-id",
        "execution_date",
        "try_number",
        "map_index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "training.kubeflow.org/job-name",
        "statefulset.kubernetes.io/pod-name",
        "apps.kruise.io/cloneset-instance-id",
        "cnpg.io/instanceName",
        "kubevirt.io/created-by",
        "leaderworkerset.sigs.k8s.io/group-key",
        "jobset.sigs.k8s.io/job-key",
        "postgres-operator.crunchydata.com/instance",
        "service.istio.io/canonical-revision",
        "sparkoperator.k8s.io/submission-id",
        "tekton.dev/pipelineRun",
        "tekton.dev/taskRun",
        "workflows.argoproj.io/workflow",
    }
)
_DOMAINS_OF_NODES: Final = ("topology.kubernetes.io", "failure-domain.beta.kubernetes.io")
_CHANGING_WORDS: Final = frozenset(
    {
        "build",
        "chart",
        "checksum",
        "commit",
        "digest",
        "generation",
        "hash",
        "hostname",
        "index",
        "node",
        "nodename",
        "ordinal",
        "rev",
        "revision",
        "sha",
        "uid",
        "uuid",
        "version",
    }
)
_TOGETHER: Final = ("run-id", "runid", "instance-id", "git-ref", "image-tag")
_NAMES_NOTHING: Final = frozenset(
    {
        "app.kubernetes.io/created-by",
        "app.kubernetes.io/managed-by",
        "heritage",
        "kubevirt.io",
        "spark-role",
        "sparkoperator.k8s.io/launched-by-spark-operator",
    }
)
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_VERSION: Final = re.compile(r"(?:^|[-_.+])(?:v\d+|v?\d+\.\d+)(?=$|[-_.+a-z])", re.IGNORECASE)
_COUNTER: Final = re.compile(r"\d{6,}|\d{4}-\d\d-\d\d")
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{7,}|[0-9a-f]{4}(?:-[0-9a-f]{4,}){3,}")
_LONG: Final = re.compile(r"[0-9a-z]{16,}")
_RANDOM: Final = re.compile(r"[bcdfghjklmnpqrstvwxz2456789]{5}|[bcdfghjklmnpqrstvwxz2456789]{8,10}")
_DIGIT: Final = re.compile(r"\d")
_LETTER: Final = re.compile(r"[a-z]")


def is_changing_key(key: str) -> bool:
    """Return whether the key names a version, revision, instance, run or node."""
    domain, _, name = key.rpartition("/")
    if key in _CONTROLLERS or domain in _DOMAINS_OF_NODES:
        return True
    words = [word.lower() for word in _WORD.findall(name)]
    return not _CHANGING_WORDS.isdisjoint(words) or "-".join(words) in _TOGETHER


def looks_like(value: str) -> str:
    """Return the kind of a changing value, such as "a version"; empty for a permanent name."""
    if _VERSION.search(value):
        return "a version"
    if _COUNTER.search(value):
        return "a date or a counter"
    lower = value.lower()
    parts = re.split(r"[-_.]", lower)
    made_up = any(
        (_HEXADECIMAL.fullmatch(part) or _LONG.fullmatch(part)) and _mixed(part) for part in parts
    )
    if (
        made_up
        or _HEXADECIMAL.fullmatch(lower)
        or (_RANDOM.fullmatch(parts[-1]) and _mixed(parts[-1]))
    ):
        return "a hash"
    return ""


def lasting(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that the next version of the workload keeps."""
    return {
        key: value
        for key, value in labels.items()
        if not is_changing_key(key) and not looks_like(value)
    }


def names_something(labels: Mapping[str, str]) -> bool:
    """Return whether the labels distinguish a workload, and name more than its tool."""
    return not labels.keys() <= _NAMES_NOTHING


def _mixed(text: str) -> bool:
    """Return whether the text has letters and digits, unlike a word, a year or a port."""
    return bool(_DIGIT.search(text) and _LETTER.search(text))
