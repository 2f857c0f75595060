"""Blockers of an uninstallation: gated pods, and shared memory from pinwarden. No I/O."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pinwarden.api.nodepinconfig import Mode, NodePinConfig
from pinwarden.api.reasons import NOT_REMOVED
from pinwarden.api.sharedmemorygroup import DeletionPolicy, Management, Phase
from pinwarden.controller.client import Json

PROFILES = "pinwarden/"
_STAYS = ("InUse", NOT_REMOVED)


class RemainingGroup(NamedTuple):
    """A group on a node before its release; `stays` is set if waiting is useless."""

    group: str
    why: str
    stays: bool


def is_gated(pod: Json) -> bool:
    """Return whether a running pod has pinwarden's profile, in any accepted spelling."""
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    spec = pod["spec"]
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


def full_name(pod: Json) -> str:
    """Return `namespace/name`."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def created_uids(groups: Iterable[Json]) -> frozenset[str]:
    """Return the UIDs of the groups whose objects pinwarden created and must remove."""
    orphan = DeletionPolicy.ORPHAN.value
    return frozenset(
        group["metadata"]["uid"]
        for group in groups
        if group["spec"].get("management") == Management.CREATE.value
        and group["spec"].get("deletionPolicy") != orphan
    )


def draining(config: Json, uids: frozenset[str]) -> Json | None:
    """Return a spec to drain these groups and limit no pod, None if the node has no such group."""
    groups = (config.get("spec") or {}).get("groups") or ()
    drained = [{**group, "draining": True} for group in groups if group.get("uid") in uids]
    return {"mode": Mode.ACTIVE.value, "groups": drained} if drained else None


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
