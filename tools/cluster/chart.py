"""The chart as objects: rendered by helm, without a cluster."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.build import binary
from cluster.errors import ClusterError

CHART = Path(__file__).resolve().parents[2] / "charts" / "pinwarden"
NAMESPACE = "pinwarden-system"
RUNS = ("Deployment", "DaemonSet", "Job")
"""Kinds with a template of pods."""
MUTATING = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"
"""What a cluster has that can put the gate's profile into pods: Kubernetes 1.36 or newer."""

Object = dict[str, Any]


def render(
    *,
    values: Sequence[Path] = (),
    given: Mapping[str, Any] | None = None,
    sets: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    namespace: str = NAMESPACE,
    release: str = "pinwarden",
    crds: bool = False,
) -> list[Object]:
    """Return what `helm install` would apply, hooks included, for a cluster of the newest
    Kubernetes.

    ``values`` are files, ``given`` is the content of one more file, ``sets`` are arguments of
    --set, ``only`` templates such as ``agent/access.yaml``. Raises ClusterError with helm's
    message, or the key that a map has twice.
    """
    options = [f"--values={path}" for path in values]
    options += ["--values=-"] if given else []
    options += [f"--set={name}={value}" for name, value in (sets or {}).items()]
    options += [f"--show-only=templates/{name}" for name in only]
    command = [
        *(str(binary("helm")), "template", release, str(CHART), f"--namespace={namespace}"),
        *(f"--api-versions={MUTATING}", "--kube-version=1.37.0"),
        *options,
        *(["--include-crds"] if crds else []),
    ]
    stdin = yaml.safe_dump(given) if given else ""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"helm template: {done.stderr.strip()[-2000:]}")
    return [each for each in yaml.load_all(done.stdout, _Loader) if each]


class _Loader(yaml.SafeLoader):
    """Refuses what helm and PyYAML take, each with another of the two values."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ClusterError(f"helm template: {key.value} is there twice: {key.start_mark}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def manifest(*, namespace: str = NAMESPACE, **options: Any) -> str:
    """Return the same for `kubectl apply --server-side -f -`: with the namespace, and without hooks
    and labels that are helm's.
    """
    space: Object = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": namespace,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        },
    }
    objects = [each for each in render(namespace=namespace, **options) if not is_hook(each)]
    text = yaml.safe_dump_all([space, *objects], sort_keys=False, width=140)
    return re.sub(
        r"^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", text, flags=re.MULTILINE
    )


def is_hook(rendered: Object) -> bool:
    """Whether helm applies it only at certain moments."""
    return "helm.sh/hook" in (rendered["metadata"].get("annotations") or {})
