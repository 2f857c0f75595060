"""Calls, groups of shared memory, and ranges of objects for the tests of mappings."""

from typing import Any

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.node.gate.borrow_rules import ObjectRange
from pinwarden.node.gate.pin_requests import PAGE
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import AUDIT_ARCH_X86_64, NUMBERS
from pinwarden.node.shm.objects import ObjectId, ObjectSet

SEGMENT = ObjectId(1, 5, 4026531839)
EXTENT = ObjectSet(devices=frozenset({7}), objects=frozenset({SEGMENT}))
LIMIT = 10 * PAGE


def call(name: str, *registers: int, arch: int = AUDIT_ARCH_X86_64, tid: int = 1) -> Notification:
    six = tuple(register % 2**64 for register in (*registers, *[0] * (6 - len(registers))))
    return Notification(1, tid, NUMBERS[arch][name], arch, six)  # type: ignore[arg-type]


def group(uid: str = "g", limit: int | None = LIMIT, **more: Any) -> NodeGroup:
    return NodeGroup.model_validate(
        {
            "name": f"ns/{uid}",
            "uid": uid,
            "backing": {"memfd": {"name": "x"}},
            "management": "Adopt",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [{"pods": ["pod"], "borrowLimit": limit}],
            **more,
        }
    )


def pages(object_id: ObjectId, start: int, end: int) -> ObjectRange:
    return ObjectRange(object_id, start * PAGE, end * PAGE)
