"""Loads an OCI seccomp profile into the calling process by libseccomp, as runc does."""

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pinwarden.node.seccomp.policy import Comparison, Policy, Rule

_lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
_lib.seccomp_init.restype = ctypes.c_void_p
_lib.seccomp_init.argtypes = [ctypes.c_uint32]
_lib.seccomp_load.argtypes = _lib.seccomp_notify_fd.argtypes = [ctypes.c_void_p]
_lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
_lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
_lib.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
_ACTIONS = {
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
}
_ARCHITECTURES = {
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_EPERM = 1
_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE
_LONG = 32
_UNKNOWN = -1  # __NR_SCMP_ERROR; a call of other architectures has another negative number


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


_lib.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.POINTER(_Comparison),
]


def oci(policy: Policy) -> dict[str, Any]:
    """Return a policy as the JSON of a profile."""
    return {
        "defaultAction": policy.default_action,
        "architectures": list(policy.architectures),
        "syscalls": [
            {
                "names": list(rule.names),
                "action": rule.action,
                "errnoRet": rule.errno,
                "args": [
                    {"index": argument, "value": value, "valueTwo": value_two, "op": operator}
                    for argument, value, value_two, operator in rule.comparisons
                ],
            }
            for rule in policy.rules
        ],
    }


def policy(profile: Mapping[str, Any], architectures: Sequence[str] = ()) -> Policy:
    """Return the JSON of a profile as a policy for some architectures."""
    return Policy(
        profile["defaultAction"],
        tuple(
            Rule(
                tuple(rule["names"]),
                rule["action"],
                tuple(
                    Comparison(each["index"], each["value"], each.get("valueTwo", 0), each["op"])
                    for each in rule.get("args") or []
                ),
                rule.get("errnoRet"),
            )
            for rule in profile["syscalls"]
        ),
        tuple(architectures),
    )


def install(profile: Mapping[str, Any]) -> int:
    """Filter this process for ever and set no_new_privs. Return the listener. Raises OSError."""
    filtered = _context(profile)
    _check(_lib.seccomp_load(filtered))
    return int(_lib.seccomp_notify_fd(filtered))


def export(profile: Mapping[str, Any], descriptor: int) -> None:
    """Write the filter as a BPF program, 8 bytes per instruction. Raises OSError."""
    _check(_lib.seccomp_export_bpf(_context(profile), descriptor))


def _context(profile: Mapping[str, Any]) -> ctypes.c_void_p:
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(_lib.seccomp_init(default))
    for architecture in profile.get("architectures") or []:
        result = _lib.seccomp_arch_add(context, _ARCHITECTURES[architecture])
        _check(0 if result == -errno.EEXIST else result)
    rules = [(name, rule) for rule in profile["syscalls"] for name in rule["names"]]
    if len(rules) > _LONG:
        _check(_lib.seccomp_attr_set(context, _OPTIMIZE, 2))
    for name, rule in rules:
        action = _action(rule["action"], rule.get("errnoRet"))
        number = _lib.seccomp_syscall_resolve_name(name.encode())
        if action == default or number == _UNKNOWN:
            continue
        arguments = rule.get("args") or []
        comparisons = [
            _Comparison(
                argument["index"],
                _OPERATORS[argument["op"]],
                argument["value"],
                argument.get("valueTwo", 0),
            )
            for argument in arguments
        ]
        indices = [argument["index"] for argument in arguments]
        together = (
            [comparisons]
            if len(set(indices)) == len(indices)
            else [[comparison] for comparison in comparisons]
        )
        for rule_comparisons in together:
            array = (_Comparison * len(rule_comparisons))(*rule_comparisons)
            _check(
                _lib.seccomp_rule_add_array(context, action, number, len(rule_comparisons), array)
            )
    return context


def _action(name: str, error: int | None) -> int:
    action = _ACTIONS[name]
    return action | (_EPERM if error is None else error) if name == "SCMP_ACT_ERRNO" else action


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
