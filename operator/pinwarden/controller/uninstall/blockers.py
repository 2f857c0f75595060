"""Blockers of an uninstallation: gated pods, and shared memory from pinwarden. No I/O."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from pinwarden.api.nodepinconfig import Mode, NodePinConfig
from pinwarden.api.reasons import NOT_REMOVED
from pinwarden.api.sharedmemorygroup import DeletionPolicy, Management, Phase
from pinwarden.controller.client import Json
from pinwarden.plan.conditions import plural
from pinwarden.plan.decode import read_pod

PROFILES = "pinwarden/"
_STAYS = ("InUse", NOT_REMOVED)
_NAMED = 20


class RemainingGroup(NamedTuple):
    """A group on a node before its release; `stays` is set if waiting is useless."""

    group: str
    why: str
    stays: bool


class GatedPod(NamedTuple):
    """A gated pod; `by_profile` is false if the NRI plugin gated its containers."""

    name: str
    by_profile: bool


def reported_gated(config: Json) -> Iterable[tuple[str, str]]:
    """Return the gated pods of a NodePinConfig, each as the node and the UID of the cgroup.

    Without a gate, and from an older agent, the report has none.
    """
    node, status = config["metadata"]["name"], config.get("status") or {}
    return [(node, uid) for uid in status.get("gatedPods") or ()]


def gated_pod(raw: Json, reported: Collection[tuple[str, str]]) -> GatedPod | None:
    """Return a running pod if its manifest names the profile or its node reports it, else None."""
    pod, by_profile = read_pod(raw), _names_profile(raw["spec"])
    if pod.terminal or not (
        by_profile or any((pod.node, uid) in reported for uid in pod.cgroup_uids)
    ):
        return None
    return GatedPod(f"{pod.namespace}/{pod.name}", by_profile)


def refusal(gated: Sequence[GatedPod]) -> str:
    """Return why the uninstallation fails, and what to do with these pods."""
    lines = [
        f"{plural(len(gated), 'pod')} would lose the gate. Without the gate, their pinning calls "
        "fail with ENOSYS, and kubectl exec into them fails."
    ]
    if names := [pod.name for pod in gated if not pod.by_profile]:
        lines.append(
            f"Gated by the NRI plugin: {few(names)}. First turn the plugin off (helm upgrade "
            "--set-string gate.mode=Off), or restarted pods are gated again. Then restart these "
            "pods (kubectl rollout restart)."
        )
    if names := [pod.name for pod in gated if pod.by_profile]:
        lines.append(
            f"Gated by a profile: {few(names)}. Remove the label pinwarden.io/gate from their "
            "namespaces, or the profile from their manifests, and recreate these pods."
        )
    lines.append(
        "Then uninstall again. To uninstall in spite of these pods: uninstall.gatedPods=Break "
        "(--gated-pods=Break). See docs/uninstall.md"
    )
    return "\n".join(lines)


def few(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _names_profile(spec: Json) -> bool:
    """Return whether a container has pinwarden's profile, in any accepted spelling."""
    fields = ("containers", "initContainers", "ephemeralContainers")
    containers = [container for field in fields for container in spec.get(field) or ()]
    profiles = (
        ((secured.get("securityContext") or {}).get("seccompProfile") or {}).get("localhostProfile")
        for secured in (spec, *containers)
    )
    paths = ((profile or "").split("/") for profile in profiles)
    return any(
        "/".join(part for part in path if part not in ("", ".")).startswith(PROFILES)
        for path in paths
    )


def created_uids(groups: Iterable[Json]) -> frozenset[str]:
    """Return the UIDs of the groups whose objects pinwarden created and must remove."""
    orphan = DeletionPolicy.ORPHAN.value
    return frozenset(
        group["metadata"]["uid"]
        for group in groups
        if group["spec"].get("management") == Management.CREATE.value
        and group["spec"].get("deletionPolicy") != orphan
    )


def released(config: Json) -> Json:
    """Return a spec that restores the limits of every process, and keeps the groups."""
    groups = (config.get("spec") or {}).get("groups") or []
    return {"mode": Mode.RELEASE.value, "groups": groups}


def draining(config: Json, uids: frozenset[str]) -> Json | None:
    """Return a spec to drain these groups and limit no pod, None if the node has no such group."""
    groups = (config.get("spec") or {}).get("groups") or ()
    drained = [{**group, "draining": True} for group in groups if group.get("uid") in uids]
    if not drained:
        return None
    return {"mode": Mode.ACTIVE.value, "groups": drained, "limitedNamespaces": []}


def remaining_groups(config: NodePinConfig) -> Sequence[RemainingGroup]:
    """Return the draining groups without a released report."""
    reports = {group.uid: group for group in config.status.groups} if config.status else {}
    remaining: list[RemainingGroup] = []
    for group in config.spec.groups:
        report = reports.get(group.uid)
        known = report is not None and report.hash == group.hash
        if not group.draining or (known and report and report.phase is Phase.RELEASED):
            continue
        why = (report.message or report.reason) if report else "the node does not report the group"
        remaining.append(
            RemainingGroup(group.name, why, bool(known and report and report.reason in _STAYS))
        )
    return remaining
