"""Keeps the limits of pods that a new configuration leaves out while their cgroups exist (H3).

The operator lists every pod of the node, including free pods. So a pod that is listed without
limits is free, because a user deleted or changed a limit. A pod that is left out is only missing.
Its object was deleted by force, or it is Failed or Succeeded. Or an operator that just started
never knew it, or the object has no room for one more. None of these releases a limit.

The limits of such a pod, and its part in groups of shared memory, are copied from the last
configuration. They stay until its cgroup is gone, a configuration lists the pod again, or mode is
Release. If the new configuration has the same limit, its version applies. The merged list is local,
so it may be longer than an object allows.

Agent, gate and accountant read one file that includes the retained pods. So all three enforce their
limits, also after a restart.
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
"""Pods that are retained beside those that a configuration lists, so that nothing grows without
bound.
"""
_SHOWN = 8
_log = logging.getLogger(__name__)
_Json = Mapping[str, Any]
_Paths = Sequence[Path]


def has_processes(uid: str, paths: _Paths) -> bool:
    """Return whether a process is in the pod's cgroups. Raises OSError."""
    return any(member_pids(directory) for directory in explore(uid, paths).members)


class Retainer:
    """Adds pods that a new configuration leaves out and whose cgroups still exist, with their limits.

    `last` is the configuration in force. `there` returns the cgroup directories of each pod on the
    node. `processes` tells whether a pod has any process. Both may raise OSError.
    """

    def __init__(
        self,
        last: Configuration | None,
        there: Callable[[], Mapping[str, _Paths]],
        processes: Callable[[str, _Paths], bool] = has_processes,
    ) -> None:
        self._last = last
        self._there = there
        self._processes = processes

    def retain(self, new: Configuration) -> Configuration:
        """Return `new` with the pods that it leaves out and that are still there, at most
        `MOST_RETAINED`; none in mode Release.
        """
        retained = new if new.spec.mode is Mode.RELEASE else self._add_gone(new)
        if retained.gone - (self._last.gone if self._last else frozenset()):
            _log.info("limits stay on pods that are not listed any more: %s", _named(retained.gone))
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
        """Return the pods that are still there.

        Where they are too many, those with processes go first.
        """
        try:
            there = self._there()
        except OSError as error:
            _log.warning("pods cannot be listed, so the limits of missing pods stay: %s", error)
            there = dict.fromkeys(missing, ())
        gone = sorted(missing & there.keys())
        if len(gone) <= MOST_RETAINED:
            return frozenset(gone)
        used = {uid for uid in gone if self._used(uid, there[uid])}
        gone.sort(key=lambda uid: uid not in used)
        released = gone[MOST_RETAINED:]
        _log.log(
            logging.ERROR if used.intersection(released) else logging.WARNING,
            "limits are released, because %d pods that are not listed any more have theirs: %s",
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
    """Return the spec `new` with these pods of `last`: the pods, those of their limits that `new`
    has not, and their part in its groups.

    A group with such pods bears its hash of `hashes`, by UID: what is acknowledged is the group
    that the operator asked for. Limits and groups may be of a later version: one that is not
    understood stays as it came.
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
    """Return the group with the pods of `gone` that it had before, each with its allowance (M8).

    A pod that `group` has stays as it is there. Pods join the entry that is equal in all but its
    pods. So there are at most as many entries as allowances. A group with a member that is not
    understood may have the pods in a way of its own, so nothing is added to it.
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
    """Return those members that are understood: objects with a list of UIDs."""
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
    """Return the pods with a limit or in a group; none in mode Release, which released them all."""
    spec = configuration.spec
    if spec.mode is Mode.RELEASE:
        return frozenset()
    listed = (pod.uid for pod in spec.pods if pod.limits)
    return frozenset(listed).union(*(group.pods() for group in spec.groups)) & {
        pod.uid for pod in spec.pods
    }
