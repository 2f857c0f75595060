"""Keeps the limits of pods left out by a new configuration, while their cgroups exist (H3).

The operator lists every pod of the node, including free pods. So a pod without limits in the list
is free, because a user deleted or changed a limit. A pod outside the list is only missing. Its
object was deleted by force, or is Failed or Succeeded. Or the operator just started and never knew
the pod, or the NodePinConfig has no room for one more. In none of these cases a limit is released.

The limits of such a pod, and its membership in groups of shared memory, are copied from the last
configuration. They stay until the cgroup is gone, a configuration lists the pod again, or the mode
is Release. If the new configuration has the same limit, its version applies. The merged list is
local, so it can be longer than an object allows.

The agent, the gate and the accountant read one file with the retained pods. So all three enforce
the limits of these pods, also after a restart.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pinwarden.api.nodepinconfig import Mode
from pinwarden.node.linux.cgroupfs import member_pids
from pinwarden.node.pods.cgroups import explore
from pinwarden.node.state.config import Configuration

MOST_RETAINED = 4096
"""The most retained pods: a bound for the growth of the merged list."""
_SHOWN = 8
_log = logging.getLogger(__name__)
_Json = Mapping[str, Any]
_Paths = Sequence[Path]


def has_processes(uid: str, paths: _Paths) -> bool:
    """Return whether a process is in the pod's cgroups. Raises OSError."""
    return any(member_pids(directory) for directory in explore(uid, paths).members)


class Retainer:
    """Adds missing pods with existing cgroups to a new configuration, with their limits.

    `last` is the configuration in force. `find` returns the cgroup directories of each pod on the
    node. `processes` returns whether a pod has any process. Both may raise OSError.
    """

    def __init__(
        self,
        last: Configuration | None,
        find: Callable[[], Mapping[str, _Paths]],
        processes: Callable[[str, _Paths], bool] = has_processes,
    ) -> None:
        self._last = last
        self._find = find
        self._processes = processes

    def retain(self, new: Configuration) -> Configuration:
        """Return `new` with the missing pods, at most `MOST_RETAINED`, and none in mode Release."""
        retained = new if new.spec.mode is Mode.RELEASE else self._add_gone(new)
        if retained.gone - (self._last.gone if self._last else frozenset()):
            _log.info("limits stay on pods no longer listed: %s", _named(retained.gone))
        self._last = retained
        return retained

    def _add_gone(self, new: Configuration) -> Configuration:
        missing = (
            _limited(self._last) - {pod.uid for pod in new.spec.pods}
            if self._last
            else frozenset[str]()
        )
        if self._last is None or not missing:
            return new
        gone = self._fitting(missing)
        if not gone:
            return new
        raw = merge(
            new.raw, self._last.raw, gone, {group.uid: group.hash for group in new.spec.groups}
        )
        merged = Configuration.parse(raw, new.uid, new.generation)
        return replace(merged, gone=gone)

    def _fitting(self, missing: frozenset[str]) -> frozenset[str]:
        """Return the missing pods on the node. If too many, those with processes come first."""
        try:
            pods = self._find()
        except OSError as error:
            _log.warning("cannot list pods, so the limits of missing pods stay: %s", error)
            pods = dict.fromkeys(missing, ())
        gone = sorted(missing & pods.keys())
        if len(gone) <= MOST_RETAINED:
            return frozenset(gone)
        used = {uid for uid in gone if self._used(uid, pods[uid])}
        gone.sort(key=lambda uid: uid not in used)
        released = gone[MOST_RETAINED:]
        _log.log(
            logging.ERROR if used.intersection(released) else logging.WARNING,
            "limits are released, because %d other pods no longer listed keep theirs: %s",
            MOST_RETAINED,
            _named(released),
        )
        return frozenset(gone[:MOST_RETAINED])

    def _used(self, uid: str, paths: _Paths) -> bool:
        try:
            return not paths or self._processes(uid, paths)
        except OSError:
            return True


def _named(uids: Collection[str]) -> str:
    names = ", ".join(sorted(uids)[:_SHOWN])
    return f"{names} and {len(uids) - _SHOWN} more" if len(uids) > _SHOWN else names


def merge(
    new: _Json, last: _Json, gone: Collection[str], hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Return the spec `new` with these pods of `last`, and with their limits and memberships.

    Limits in `new` stay as they are. A group with such pods gets its hash from `hashes`, by UID, to
    acknowledge the group requested by the operator. Limits and groups can be of a later version:
    unknown ones stay as received.
    """
    pods = [pod for pod in last.get("pods", ()) if pod["uid"] in gone]
    known = {_text(limit, "name") for limit in new.get("limits", ())}
    names = {name for pod in pods for name in pod.get("limits", ())} - known
    limits = [limit for limit in last.get("limits", ()) if _text(limit, "name") in names]
    before = {_text(group, "uid"): group for group in last.get("groups", ()) if _text(group, "uid")}
    return {
        **new,
        "limits": [*new.get("limits", ()), *limits],
        "pods": [*new.get("pods", ()), *pods],
        "groups": [
            _with_members(group, before[uid], gone, hashes.get(uid or ""))
            if (uid := _text(group, "uid")) in before
            else group
            for group in new.get("groups", ())
        ],
    }


def _with_members(group: _Json, before: _Json, gone: Collection[str], asked: str | None) -> _Json:
    """Return the group with the pods of `gone` from before, each with its allowance (M8).

    Pods in `group` stay unchanged. A pod joins the entry with the same fields besides the pods, so
    there are at most as many entries as allowances. A group with an unknown kind of member can have
    the pods in its own way, so the group stays unchanged.
    """
    members = _members(group)
    if members != group.get("members", []):
        return group
    missing = set(gone).difference(*(member["pods"] for member in members))
    for member in _members(before):
        if not (pods := sorted(missing.intersection(member["pods"]))):
            continue
        missing.difference_update(pods)
        same = next((entry for entry in members if _allowance(entry) == _allowance(member)), None)
        if same is None:
            members.append({**member, "pods": pods})
        else:
            same["pods"] = [*same["pods"], *pods]
    if members == group.get("members", []):
        return group
    return {**group, "members": members, **({"askedHash": asked} if asked else {})}


def _members(group: _Json) -> list[dict[str, Any]]:
    """Return the valid members: objects with a list of UIDs."""
    members = group.get("members")
    return [
        dict(member)
        for member in (members if isinstance(members, list) else ())
        if isinstance(member, Mapping)
        and isinstance(member.get("pods"), list)
        and all(isinstance(uid, str) for uid in member["pods"])
    ]


def _text(entry: object, field: str) -> str | None:
    value = entry.get(field) if isinstance(entry, Mapping) else None
    return value if isinstance(value, str) else None


def _allowance(member: _Json) -> _Json:
    return {field: value for field, value in member.items() if field != "pods"}


def _limited(configuration: Configuration) -> frozenset[str]:
    """Return the pods with a limit or in a group, empty in mode Release: all are released."""
    spec = configuration.spec
    if spec.mode is Mode.RELEASE:
        return frozenset()
    listed = (pod.uid for pod in spec.pods if pod.limits)
    return frozenset(listed).union(*(group.pods() for group in spec.groups)) & {
        pod.uid for pod in spec.pods
    }
