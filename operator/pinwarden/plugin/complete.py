"""Completion of the command line, for kubectl and for shells.

kubectl runs `kubectl_complete-pinwarden` from the PATH with the words after `kubectl pinwarden`;
the last word is incomplete. kubectl reads lines `candidate<TAB>description`, then `:DIRECTIVE` (0:
complete file names; 4: do not). The scripts of `kubectl pinwarden completion SHELL` do the same for
the program's own name, `kubectl-pinwarden`.

Names come from the API server. If the server does not answer within two seconds, or rejects the
request, there are no names and no message.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from pinwarden.plugin.commands import COMMANDS, Command, Flag, ValueKind, command_named, flag_named
from pinwarden.plugin.errors import PluginError

NO_FILES: Final = ":4"
FILES: Final = ":0"
_SECONDS: Final = 2.0
Candidate = tuple[str, str]

_SCRIPTS: Final = {
    "bash": """# bash completion for kubectl-pinwarden. kubectl's own completion completes
# `kubectl pinwarden` if kubectl_complete-pinwarden is on the PATH.
_kubectl_pinwarden() {
    local line candidates=() directive=:4
    while IFS= read -r line; do
        case "$line" in
            :*) directive=$line ;;
            *) candidates+=("${line%%$'\\t'*}") ;;
        esac
    done < <(kubectl_complete-pinwarden "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=("${candidates[@]}")
    if [[ $directive == :0 ]]; then
        compopt -o default
    fi
}
complete -F _kubectl_pinwarden kubectl-pinwarden
""",
    "zsh": """#compdef kubectl-pinwarden
# zsh completion for kubectl-pinwarden. kubectl's own completion completes
# `kubectl pinwarden` if kubectl_complete-pinwarden is on the PATH.
_kubectl_pinwarden() {
    local line directive=:4
    local -a candidates
    while IFS= read -r line; do
        case "$line" in
            :*) directive=$line ;;
            *$'\\t'*) candidates+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}") ;;
            *) candidates+=("${line//:/\\\\:}") ;;
        esac
    done < <(kubectl_complete-pinwarden "${(@)words[2,CURRENT]}" 2>/dev/null)
    if [[ $directive == :0 ]]; then
        _files
    else
        _describe -V kubectl-pinwarden candidates
    fi
}
compdef _kubectl_pinwarden kubectl-pinwarden
""",
    "fish": """# fish completion for kubectl-pinwarden. kubectl's own completion completes
# `kubectl pinwarden` if kubectl_complete-pinwarden is on the PATH.
function __kubectl_pinwarden
    set -l words (commandline -opc) (commandline -ct)
    kubectl_complete-pinwarden $words[2..] 2>/dev/null | string match -v -r '^:'
end
complete -c kubectl-pinwarden -f -a '(__kubectl_pinwarden)'
""",
}


def main() -> NoReturn:
    """Run `kubectl_complete-pinwarden`."""
    lines = complete(sys.argv[1:])
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.exit(0)


def run(options: argparse.Namespace) -> None:
    """Run `kubectl pinwarden completion SHELL`."""
    sys.stdout.write(_SCRIPTS[options.argument])


def complete(words: Sequence[str]) -> list[str]:
    """Return the output for these words; the last word is incomplete, and may be empty."""
    *before, typed = words or [""]
    if not before:
        return _lines(((command.name, command.help) for command in COMMANDS), typed)
    command = command_named(before[0])
    if command is None:
        return [NO_FILES]
    line, flag = _Line.of(command, before[1:]), flag_named(command.flags, before[-1])
    if flag is not None and flag.takes_value:
        return _value(flag, typed, line)
    if typed.startswith("-"):
        name, equals, value = typed.partition("=")
        flag = flag_named(command.flags, name)
        if equals and flag is not None and flag.takes_value:
            return [
                candidate if candidate.startswith(":") else f"{name}={candidate}"
                for candidate in _value(flag, value, line)
            ]
        return _lines(((name, flag.help) for flag in command.flags for name in flag.names), typed)
    if command.argument is None or line.has_argument:
        return [NO_FILES]
    choices = [(choice, "") for choice in command.argument.choices]
    return _lines(choices or _names(command.argument.values, line), typed)


def _value(flag: Flag, typed: str, line: "_Line") -> list[str]:
    if flag.values is ValueKind.FILES:
        return [FILES]
    choices = [(choice, "") for choice in flag.choices]
    return _lines(choices or _names(flag.values, line), typed)


def _lines(candidates: Iterable[Candidate], typed: str) -> list[str]:
    matching = [candidate for candidate in candidates if candidate[0].startswith(typed)]
    return [*(f"{name}\t{text}" if text else name for name, text in matching), NO_FILES]


@dataclass(frozen=True, slots=True)
class _Line:
    """The complete words: flags by their first names, and whether the argument is present."""

    flags: Mapping[str, str]
    has_argument: bool

    @classmethod
    def of(cls, command: Command, words: Iterable[str]) -> "_Line":
        """Parse the words after a subcommand."""
        flags: dict[str, str] = {}
        has_argument = False
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=")
            flag = flag_named(command.flags, name)
            if not word.startswith("-"):
                has_argument = True
            elif flag is not None and flag.takes_value:
                flags[flag.names[0]] = value if equals else next(rest, "")
        return cls(flags, has_argument)


def _names(values: ValueKind, line: _Line) -> Iterator[Candidate]:
    if values is ValueKind.NOTHING:
        return
    from pinwarden.plugin.client import PINWARDEN, PluginClient, contexts

    kubeconfig = line.flags.get("--kubeconfig")
    if values is ValueKind.CONTEXTS:
        yield from ((name, "") for name in contexts(kubeconfig))
        return
    try:
        client = PluginClient(kubeconfig, line.flags.get("--context"), seconds=_SECONDS)
        namespace = line.flags.get("-n") or client.namespace
        pods = f"/api/v1/namespaces/{namespace}/pods"
        paths = {
            ValueKind.NAMESPACES: ["/api/v1/namespaces"],
            ValueKind.NODES: ["/api/v1/nodes"],
            ValueKind.PODS: [pods],
            ValueKind.PODS_AND_LIMITS: [pods, f"{PINWARDEN}/namespaces/{namespace}/pinlimits"],
        }[values]
        for path in paths:
            prefix = f"{namespace}/" if path.endswith("pinlimits") else ""
            for raw in client.items(path):
                yield f"{prefix}{raw['metadata']['name']}", ""
    except PluginError:
        return
