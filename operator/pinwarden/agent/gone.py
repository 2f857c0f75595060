"""Pods that a new configuration leaves out while their cgroups are still there: what held for them stays (H3).

The operator lists every pod of the node, the free ones too. So a pod that is listed without limits is free, because somebody deleted or
changed a limit. A pod that is left out is only missing: its object was deleted by force, it is Failed or Succeeded, or an operator that was
just started never knew it. Nothing is released for that. Its limits, and its part in groups of shared memory, are taken over from the last
configuration until its cgroup is gone, a configuration lists it again, or mode is Release. A limit that the new configuration has too holds
as it is there.

The agent, the gate and the accountant follow one file, which has the retained pods in it, so that all three hold them, also after a
restart.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from pinwarden.agent.configuration import Configuration, ConfigurationError
from pinwarden.api.nodepinconfig import Mode

_log = logging.getLogger(__name__)
_Json = Mapping[str, Any]


class Retainer:
    """Adds to each configuration what the one before it held for pods that are left out and still there.

    `last` is the configuration in force; `there` returns the pods that have a cgroup on the node, by uid, and may raise OSError.
    """

    def __init__(self, last: Configuration | None, there: Callable[[], Collection[str]]) -> None:
        self._last = last
        self._there = there

    def retain(self, new: Configuration) -> Configuration:
        """Return `new` with the pods that are gone; where they do not fit in, `new` itself and a line in the log."""
        retained = self._add_gone(new)
        if retained.gone - (self._last.gone if self._last else frozenset()):
            _log.info(
                "limits stay on pods that are not listed any more: %s", ", ".join(sorted(retained.gone))
            )
        self._last = retained
        return retained

    def _add_gone(self, new: Configuration) -> Configuration:
        missing = (
            _governed(self._last) - {pod.uid for pod in new.spec.pods} if self._last else frozenset[str]()
        )
        if self._last is None or not missing:
            return new
        try:
            gone = missing & frozenset(self._there())
        except OSError as error:
            _log.warning("pods cannot be listed, so what held for missing ones stays: %s", error)
            gone = missing
        if not gone:
            return new
        try:
            merged = Configuration.parse(merge(new.raw, self._last.raw, gone), new.uid, new.generation)
        except ConfigurationError as error:  # more of something than a configuration may have
            _log.error("limits of pods that are not listed any more are released: %s", error)
            return new
        return replace(merged, gone=gone)


def merge(new: _Json, last: _Json, gone: Collection[str]) -> dict[str, Any]:
    """Return the spec `new` with these pods of `last`: the pods, those of their limits that `new` has not, and their part in its groups."""
    pods = [pod for pod in last.get("pods", ()) if pod["uid"] in gone]
    known = {limit.get("name") for limit in new.get("limits", ())}
    names = {name for pod in pods for name in pod.get("limits", ())} - known
    limits = [limit for limit in last.get("limits", ()) if limit.get("name") in names]
    before = {group.get("uid"): group for group in last.get("groups", ())}
    return {
        **new,
        "limits": [*new.get("limits", ()), *limits],
        "pods": [*new.get("pods", ()), *pods],
        "groups": [
            _with_members(group, before.get(group.get("uid"), {}), gone) for group in new.get("groups", ())
        ],
    }


def _with_members(group: _Json, before: _Json, gone: Collection[str]) -> _Json:
    """Return the group with the pods of `gone` that it had before, each with its allowance (M8).

    A pod that `group` has stays as it is there. Pods join the entry that is equal in all but its pods. So there are at most as many entries
    as allowances.
    """
    members = [dict(member) for member in group.get("members", ())]
    missing = set(gone).difference(*(member["pods"] for member in members))
    for member in before.get("members", ()):
        if not (pods := sorted(missing.intersection(member["pods"]))):
            continue
        missing.difference_update(pods)
        same = next((entry for entry in members if _allowance(entry) == _allowance(member)), None)
        if same is None:
            members.append({**member, "pods": pods})
        else:
            same["pods"] = [*same["pods"], *pods]
    return {**group, "members": members}


def _allowance(member: _Json) -> _Json:
    return {field: value for field, value in member.items() if field != "pods"}


def _governed(configuration: Configuration) -> frozenset[str]:
    """The pods that a limit or a group holds for; none in mode Release, which gave everything back."""
    spec = configuration.spec
    if spec.mode is Mode.RELEASE:
        return frozenset()
    listed = (pod.uid for pod in spec.pods if pod.limits)
    return frozenset(listed).union(*(group.pods() for group in spec.groups)) & {pod.uid for pod in spec.pods}
