"""Blockers of an uninstallation: gated pods, and shared memory that pinwarden created. No I/O."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pinwarden.api.nodepinconfig import Mode, NodePinConfig
from pinwarden.api.reasons import NOT_REMOVED
from pinwarden.api.sharedmemorygroup import DeletionPolicy, Management, Phase
from pinwarden.controller.client import Json

PROFILES = "pinwarden/"
_STAYS = ("InUse", NOT_REMOVED)


class RemainingGroup(NamedTuple):
    """A group that a node has not released; `stays` means that waiting is useless."""

    group: str
    why: str
    stays: bool


def is_gated(pod: Json) -> bool:
    """Return whether a running pod has a container with pinwarden's profile, in any accepted
    spelling.
    """
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    spec = pod["spec"]
    parts = ("containers", "initContainers", "ephemeralContainers")
    contexts = [spec.get("securityContext")] + [
        each.get("securityContext") for part in parts for each in spec.get(part) or ()
    ]
    profiles = (
        ((each or {}).get("seccompProfile") or {}).get("localhostProfile") or ""
        for each in contexts
    )
    return any(
        "/".join(part for part in profile.split("/") if part not in ("", ".")).startswith(PROFILES)
        for profile in profiles
    )


def full_name(pod: Json) -> str:
    """Return `namespace/name`."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def made(groups: Iterable[Json]) -> frozenset[str]:
    """Return the UIDs of the groups whose objects pinwarden created and must remove."""
    orphan = DeletionPolicy.ORPHAN.value
    return frozenset(
        each["metadata"]["uid"]
        for each in groups
        if each["spec"].get("management") == Management.CREATE.value
        and each["spec"].get("deletionPolicy") != orphan
    )


def draining(config: Json, made: frozenset[str]) -> Json | None:
    """Return a spec that drains these groups and limits no pod, None if the node has none of the
    groups.
    """
    groups = [
        each for each in (config.get("spec") or {}).get("groups") or () if each.get("uid") in made
    ]
    if not groups:
        return None
    return {"mode": Mode.ACTIVE.value, "groups": [{**each, "draining": True} for each in groups]}


def remaining_groups(config: NodePinConfig) -> Sequence[RemainingGroup]:
    """Return the draining groups that the node has not released."""
    reports = {group.uid: group for group in config.status.groups} if config.status else {}
    remaining: list[RemainingGroup] = []
    for group in config.spec.groups:
        report = reports.get(group.uid)
        known = report is not None and report.hash == group.hash
        if not group.draining or (known and report and report.phase is Phase.RELEASED):
            continue
        why = (report.message or report.reason) if report else "the node does not report it"
        remaining.append(
            RemainingGroup(group.name, why, bool(known and report and report.reason in _STAYS))
        )
    return remaining
