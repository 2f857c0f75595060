"""The messages of NRI for this plugin, by the field numbers of NRI's api.proto.

See pkg/api/api.proto of containerd/nri, version 0.12.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Final

from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.nri.wire import Fields, WireError, encode
from pinwarden.node.seccomp.policy import Comparison, Policy, Rule

_SERVICE: Final = "nri.pkg.api.v1alpha1.Runtime"
_FAILED_PRECONDITION: Final = 9  # google.rpc.Code
_MOST_POLICIES: Final = 64
"""The policies that stay decoded or encoded. Most containers of a node have the same ones."""
_MEMLOCK: Final = "RLIMIT_MEMLOCK"
_CONTAINER_FIELDS: Final = frozenset({1, 2, 3, 4, 6, 11, 13})
"""The fields of a Container for the plugin: no arguments, variables or mounts, whose size is the
choice of an author.
"""


class Event(IntEnum):
    """The events of this plugin's subscription."""

    CREATE_CONTAINER = 4
    REMOVE_CONTAINER = 11
    VALIDATE_CONTAINER_ADJUSTMENT = 14


class State(IntEnum):
    """The states of a container in which its processes exist."""

    CREATED = 1
    PAUSED = 2
    RUNNING = 3


@dataclass(frozen=True, slots=True)
class Pod:
    """A PodSandbox. `handler` is the runtime of its RuntimeClass, empty without one."""

    id: str
    name: str
    uid: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    handler: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A Container. `policy` is None for an unconfined container, also for a privileged container.

    `memlock` is its RLIMIT_MEMLOCK, None if the container inherits the limits of the runtime.
    """

    id: str
    sandbox: str
    name: str
    state: int
    policy: Policy | None
    memlock: Limits | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A ConfigureRequest. `request_seconds` is the runtime's timeout of a request.

    `nri_version` is empty before NRI 0.12, which is also the first version with the policies.
    """

    runtime: str
    version: str
    request_seconds: float
    nri_version: str


@dataclass(frozen=True, slots=True)
class Synchronization:
    """A SynchronizeRequest; with `more`, another request follows.

    `containers` are encoded, because the runtime does not wait until all of them are read.
    """

    pods: tuple[Pod, ...]
    containers: tuple[bytes, ...]
    more: bool


def parse_request(payload: bytes) -> tuple[str, bytes]:
    """Return the method of a ttrpc Request, and its payload. Raises WireError."""
    request = Fields(payload)
    return request.text(2), request.octets(3)


def response(payload: bytes) -> bytes:
    """Return a ttrpc Response."""
    return encode({2: payload})


def error_response(text: str) -> bytes:
    """Return a ttrpc Response with an error, which makes the runtime reject a container."""
    return encode({1: encode({1: _FAILED_PRECONDITION, 2: text})})


def response_error(payload: bytes) -> str:
    """Return the error of a ttrpc Response, empty without one. Raises WireError."""
    status = Fields(payload).message(1)
    if status is None or not status.number(1):
        return ""
    return status.text(2) or f"code {status.number(1)}"


def register(name: str, index: str, seconds: float) -> bytes:
    """Return the Request for the registration of the plugin within some seconds."""
    payload = encode({1: name, 2: index})
    return encode({1: _SERVICE, 2: "RegisterPlugin", 3: payload, 4: int(seconds * 1e9)})


def parse_configure(payload: bytes) -> Configuration:
    """Read a ConfigureRequest. Raises WireError."""
    request = Fields(payload)
    return Configuration(
        request.text(2), request.text(3), request.number(5) / 1000, request.text(6)
    )


def configured(events: Iterable[Event]) -> bytes:
    """Return a ConfigureResponse."""
    return encode({2: sum(1 << event - 1 for event in events)})


def parse_synchronize(payload: bytes) -> Synchronization:
    """Read a SynchronizeRequest. Raises WireError."""
    request = Fields(payload)
    return Synchronization(
        tuple(_pod(pod) for pod in request.messages(1)),
        request.parts(2),
        bool(request.number(3)),
    )


def compact(encoded: bytes) -> bytes:
    """Return a Container with the fields for the plugin only. Raises WireError."""
    return Fields(encoded, _CONTAINER_FIELDS).encoded()


def parse_container(encoded: bytes) -> Container:
    """Read a Container. Raises WireError."""
    return _container(Fields(encoded, _CONTAINER_FIELDS))


def parse_removed(payload: bytes) -> str:
    """Return the id of a removed container of a StateChangeEvent, else "". Raises WireError."""
    event = Fields(payload)
    removed = event.joined(3) if event.number(1) == Event.REMOVE_CONTAINER else None
    return "" if removed is None else Fields(removed, _CONTAINER_FIELDS).text(1)


def synchronized(*, more: bool) -> bytes:
    """Return a SynchronizeResponse without updates."""
    return encode({2: int(more)})


def parse_create(payload: bytes) -> tuple[Pod, Container]:
    """Read a CreateContainerRequest, or the start of a ValidateContainerAdjustmentRequest.

    Raises WireError.
    """
    request = Fields(payload)
    pod, container = request.message(1), request.joined(2)
    if pod is None or container is None:
        raise WireError("a request has no pod or no container")
    return _pod(pod), parse_container(container)


def parse_adjusted_listener(payload: bytes) -> str:
    """Return the listener's path in the adjusted policy of a ValidateContainerAdjustmentRequest.

    Return "" without an adjusted policy. Raises WireError.
    """
    adjusted = Fields(payload).message(3)
    for number in (6, 6):
        adjusted = adjusted.message(number) if adjusted is not None else None
    return adjusted.text(5) if adjusted is not None else ""


def adjust(policy: Policy | None, memlock: Limits | None, annotations: Mapping[str, str]) -> bytes:
    """Return a CreateContainerResponse with a seccomp policy, RLIMIT_MEMLOCK and annotations."""
    adjustment: dict[int, object] = {
        2: [encode({1: name, 2: value}) for name, value in annotations.items()]
    }
    if policy is not None:
        adjustment[6] = encode({6: _encode_policy(policy)})
    if memlock is not None:
        adjustment[7] = encode({1: _MEMLOCK, 2: memlock.hard, 3: memlock.soft})
    return encode({1: encode(adjustment)})


def _pod(pod: Fields) -> Pod:
    return Pod(
        id=pod.text(1),
        name=pod.text(2),
        uid=pod.text(3),
        namespace=pod.text(4),
        labels=pod.strings(5),
        annotations=pod.strings(6),
        handler=pod.text(7),
    )


def _container(container: Fields) -> Container:
    linux = container.message(11)
    policy = linux.joined(8) if linux is not None else None
    return Container(
        container.text(1),
        container.text(2),
        container.text(3),
        container.number(4),
        _policy(policy) if policy is not None else None,
        _memlock(container),
        container.strings(6),
    )


def _memlock(container: Fields) -> Limits | None:
    found = [limit for limit in container.messages(13) if limit.text(1) == _MEMLOCK]
    return Limits(found[-1].number(3), found[-1].number(2)) if found else None


@lru_cache(maxsize=_MOST_POLICIES)
def _policy(encoded: bytes) -> Policy:
    policy = Fields(encoded)
    return Policy(
        default_action=policy.text(1),
        rules=tuple(_rule(rule) for rule in policy.messages(7)),
        architectures=policy.texts(3),
        flags=policy.texts(4),
        default_errno=_optional(policy.message(2)),
        listener_path=policy.text(5),
        listener_metadata=policy.text(6),
    )


def _rule(rule: Fields) -> Rule:
    comparisons = tuple(
        Comparison(each.number(1), each.number(2), each.number(3), each.text(4))
        for each in rule.messages(4)
    )
    return Rule(rule.texts(1), rule.text(2), comparisons, _optional(rule.message(3)))


def _optional(value: Fields | None) -> int | None:
    return None if value is None else value.number(1)


@lru_cache(maxsize=_MOST_POLICIES)
def _encode_policy(policy: Policy) -> bytes:
    return encode(
        {
            1: policy.default_action,
            2: _encode_optional(policy.default_errno),
            3: policy.architectures,
            4: policy.flags,
            5: policy.listener_path,
            6: policy.listener_metadata,
            7: [_encode_rule(rule) for rule in policy.rules],
        }
    )


def _encode_rule(rule: Rule) -> bytes:
    return encode(
        {
            1: rule.names,
            2: rule.action,
            3: _encode_optional(rule.errno),
            4: [
                encode({1: argument, 2: value, 3: value_two, 4: operator})
                for argument, value, value_two, operator in rule.comparisons
            ],
        }
    )


def _encode_optional(value: int | None) -> list[bytes]:
    return [] if value is None else [encode({1: value})]
