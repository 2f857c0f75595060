"""The command line as values: subcommands, flags, and their completion.

Flags have the names and meaning of kubectl's flags. Wrong usage ends with exit code 1, as in
kubectl.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NoReturn

from pinwarden import SYSTEM_NAMESPACE, __version__

PROGRAM: Final = "kubectl pinwarden"


class ValueKind(StrEnum):
    """The kind of objects that an argument names, for completion."""

    NAMESPACES = "namespaces"
    NODES = "nodes"
    PODS = "pods"
    PODS_AND_LIMITS = "pods and limits"
    CONTEXTS = "contexts"
    FILES = "files"
    NOTHING = ""


@dataclass(frozen=True, slots=True)
class Flag:
    """An option; a switch if it has neither `metavar` nor `choices`."""

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    values: ValueKind = ValueKind.NOTHING
    default: str | None = None

    @property
    def takes_value(self) -> bool:
        """Return whether the flag takes a value."""
        return bool(self.metavar or self.choices)


@dataclass(frozen=True, slots=True)
class Argument:
    """The positional argument of a subcommand."""

    name: str
    help: str
    required: bool = False
    choices: tuple[str, ...] = ()
    values: ValueKind = ValueKind.NOTHING


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand; its `module` defines `run(options)`."""

    name: str
    help: str
    module: str
    flags: tuple[Flag, ...] = ()
    argument: Argument | None = None


_NAMESPACE = Flag(
    ("-n", "--namespace"),
    "namespace to read (default: namespace of the context)",
    metavar="NAME",
    values=ValueKind.NAMESPACES,
)
_ALL = Flag(("-A", "--all-namespaces"), "read all namespaces")
_SELECTOR = Flag(
    ("-l", "--selector"), "only pods with these labels, such as app=db", metavar="LABELS"
)
_NO_HEADERS = Flag(("--no-headers",), "print tables without headings")
_SYSTEM = Flag(
    ("--pinwarden-namespace",),
    f"namespace of pinwarden itself (default: {SYSTEM_NAMESPACE})",
    metavar="NAME",
    values=ValueKind.NAMESPACES,
    default=SYSTEM_NAMESPACE,
)
_CONNECTION = (
    Flag(
        ("--context",),
        "context of the kubeconfig to use",
        metavar="NAME",
        values=ValueKind.CONTEXTS,
    ),
    Flag(("--kubeconfig",), "kubeconfig to use", metavar="FILE", values=ValueKind.FILES),
)


def _output(*choices: str) -> Flag:
    return Flag(
        ("-o", "--output"), f"one of: {', '.join(choices)} (default: a table)", choices=choices
    )


COMMANDS: Final = (
    Command(
        "top",
        "show the pods that pin most, or shared memory with --shared",
        "top",
        (
            _NAMESPACE,
            _ALL,
            _SELECTOR,
            Flag(("--by",), "a row for each counter of the kernel", choices=("source",)),
            Flag(("--shared",), "shared memory: groups, borrowing pods, and the fair view"),
            _SYSTEM,
            _output("wide", "json", "yaml"),
            _NO_HEADERS,
            *_CONNECTION,
        ),
    ),
    Command(
        "explain",
        "explain the limits and the level of a pod, with next steps",
        "explain",
        (_NAMESPACE, _SYSTEM, _output("wide", "json", "yaml"), _NO_HEADERS, *_CONNECTION),
        Argument("POD", "the pod", required=True, values=ValueKind.PODS),
    ),
    Command(
        "probe",
        "show the level that nodes can enforce for each source",
        "probe",
        (
            Flag(
                ("--strict",),
                "exit with 1 unless the agent of every node reports its levels",
            ),
            _SYSTEM,
            _output("wide", "json", "yaml"),
            _NO_HEADERS,
            *_CONNECTION,
        ),
        Argument("NODE", "one node (default: all)", values=ValueKind.NODES),
    ),
    Command(
        "recommend",
        "recommend a limit for each workload, as manifests with -o yaml",
        "recommend",
        (_NAMESPACE, _ALL, _SELECTOR, _output("wide", "json", "yaml"), _NO_HEADERS, *_CONNECTION),
        Argument(
            "POD|KIND/NAME|NAMESPACE/LIMIT",
            "the workload of one pod, one workload, or one PinLimit",
            values=ValueKind.PODS_AND_LIMITS,
        ),
    ),
    Command(
        "completion",
        "print the completion script for a shell",
        "complete",
        argument=Argument("SHELL", "the shell", required=True, choices=("bash", "zsh", "fish")),
    ),
)


class _Parser(argparse.ArgumentParser):
    """A parser with error messages like those of kubectl."""

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 1."""
        self.exit(1, f"error: {message}\nSee '{self.prog} --help' for usage.\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = _Parser(
        prog=PROGRAM,
        description="Shows the pinned memory of pods, their limits and levels, and next steps.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"kubectl-pinwarden {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        _add(commands, command)
    return whole


def _add(commands: "argparse._SubParsersAction[Any]", command: Command) -> None:
    sub = commands.add_parser(
        command.name, help=command.help, description=_sentence(command.help), allow_abbrev=False
    )
    sub.set_defaults(module=command.module)
    if command.argument:
        sub.add_argument(
            "argument",
            metavar=command.argument.name,
            help=command.argument.help,
            nargs=None if command.argument.required else "?",
            choices=command.argument.choices or None,
        )
    for flag in command.flags:
        if flag.takes_value:
            sub.add_argument(
                *flag.names,
                help=flag.help,
                metavar=flag.metavar or "|".join(flag.choices),
                choices=flag.choices or None,
                default=flag.default,
            )
        else:
            sub.add_argument(*flag.names, help=flag.help, action="store_true")


def ordered(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with leading flags, as in `-n team-a top`, behind the subcommand."""
    known = [flag for command in COMMANDS for flag in command.flags]
    rest = list(arguments)
    leading: list[str] = []
    while rest and (flag := flag_named(known, rest[0].partition("=")[0])):
        leading.append(rest.pop(0))
        if flag.takes_value and "=" not in leading[-1] and rest:
            leading.append(rest.pop(0))
    return [*rest[:1], *leading, *rest[1:]]


def command_named(name: str) -> Command | None:
    """Return the subcommand with this name."""
    return next((command for command in COMMANDS if command.name == name), None)


def flag_named(flags: Sequence[Flag], name: str) -> Flag | None:
    """Return the flag with this name."""
    return next((flag for flag in flags if name in flag.names), None)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
