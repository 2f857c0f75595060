"""What the subcommands read of the API server, as values of `plan`.

A user may lack some of the rights. Then everything is asked for all the same, and what is missing is said in one message.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from pinwarden.api.meta import LabelSelector
from pinwarden.api.nodepinconfig import NodePinConfig, NodePinConfigSpec, NodePinConfigStatus
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.plan.decode import AGENT_SELECTOR, agents_by_node, is_lost, read_agent
from pinwarden.plan.group_compiler import FINALIZER, Group
from pinwarden.plugin.client import PINWARDEN, ApiError, Client, Json
from pinwarden.plugin.errors import PluginError

_Kind = TypeVar("_Kind", PinLimit, ClusterPinLimit, SharedMemoryGroup)


class Rights:
    """Reads what the user may read, and remembers what not; as a context manager it says so at the end."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lacking: list[str] = []

    def __enter__(self) -> "Rights":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises PluginError when a right was missing."""
        if kind is None and self._lacking:
            raise PluginError(
                f"your user lacks the right to {', to '.join(self._lacking)}. An administrator can give it by a ClusterRole; "
                "docs/kubectl-plugin.md has one"
            )

    def items(self, resource: str, namespace: str | None = None, **query: str) -> Iterator[Json]:
        """The objects of a list; nothing where the right is missing."""
        try:
            yield from self._client.items(_path(resource, namespace), **query)
        except ApiError as error:
            self._failed(error, "list", resource, namespace)

    def items_if_allowed(self, resource: str, namespace: str | None = None) -> list[Json] | None:
        """Return the objects of a list; None where the right is missing, which nobody is told of."""
        try:
            return list(self._client.items(_path(resource, namespace)))
        except ApiError as error:
            if error.status == 403:
                return None
            raise

    def get(self, resource: str, name: str, namespace: str | None = None) -> Json | None:
        """One object; None where there is none, or the right is missing."""
        try:
            return self._client.get(f"{_path(resource, namespace)}/{name}")
        except ApiError as error:
            if not error.by_name:
                self._failed(error, "get", resource, namespace)
            return None

    def _failed(self, error: ApiError, verb: str, resource: str, namespace: str | None) -> None:
        own = resource in _OWN
        if error.status == 403:
            where = f" in namespace {namespace}" if namespace else ""
            self._lacking.append(f"{verb} {resource}{'.pinwarden.io' if own else ''}{where}")
        elif error.status == 404 and own:
            raise PluginError(
                f"this cluster has no {resource}.pinwarden.io: pinwarden is not installed. "
                "Its chart brings the CRDs: helm install pinwarden charts/pinwarden --namespace pinwarden-system --create-namespace"
            ) from error
        else:
            raise error


_OWN = ("pinlimits", "clusterpinlimits", "sharedmemorygroups", "nodepinconfigs")


_APPS = ("deployments", "statefulsets", "daemonsets")


def _path(resource: str, namespace: str | None) -> str:
    space = f"/namespaces/{namespace}" if namespace else ""
    api = PINWARDEN if resource in _OWN else "/apis/apps/v1" if resource in _APPS else "/api/v1"
    return f"{api}{space}/{resource}"


class OwnerSelectors(NamedTuple):
    """Selectors by namespace and workload, such as `deployment/db`; `lacking` are kinds that the user may not list."""

    by_workload: Mapping[tuple[str, str], LabelSelector]
    lacking: Sequence[str]


def owner_selectors(rights: Rights, namespace: str | None, workloads: Collection[str]) -> OwnerSelectors:
    """Return the selectors of the Deployments, StatefulSets and DaemonSets among `workloads`; no list is read in vain."""
    found: dict[tuple[str, str], LabelSelector] = {}
    lacking = []
    for resource in _APPS:
        kind = resource.removesuffix("s")
        if not any(workload.startswith(f"{kind}/") for workload in workloads):
            continue
        raws = rights.items_if_allowed(resource, namespace)
        if raws is None:
            lacking.append(resource)
        for raw in raws or ():
            with suppress(ValidationError):
                selector = LabelSelector.model_validate(raw["spec"]["selector"])
                found[raw["metadata"]["namespace"], f"{kind}/{raw['metadata']['name']}"] = selector
    return OwnerSelectors(found, lacking)


class Read(NamedTuple):
    """Resources, and by name what is wrong with those that this version does not understand."""

    limits: Sequence[PinLimit | ClusterPinLimit]
    unreadable: Mapping[str, str]


def limits(rights: Rights, namespace: str | None, *, cluster: bool) -> Read:
    """The PinLimits of a namespace, or of all, and with `cluster` all ClusterPinLimits."""
    found: list[PinLimit | ClusterPinLimit] = []
    unreadable: dict[str, str] = {}
    kinds: list[tuple[type[PinLimit | ClusterPinLimit], str | None]] = [(PinLimit, namespace)]
    if cluster:
        kinds.append((ClusterPinLimit, None))
    for kind, space in kinds:
        for raw in rights.items(kind.plural, space):
            try:
                found.append(_resource(kind, raw))  # type: ignore[type-var]  # one of the two
            except ValidationError as error:
                name = "/".join(filter(None, (raw["metadata"].get("namespace"), raw["metadata"]["name"])))
                unreadable[f"{kind.__name__} {name}"] = _first(error)
    return Read(found, unreadable)


def groups(rights: Rights, namespace: str) -> list[Group]:
    """The SharedMemoryGroups of a namespace that this version understands."""
    found = []
    for raw in rights.items(SharedMemoryGroup.plural, namespace):
        metadata = raw["metadata"]
        try:
            resource = _resource(SharedMemoryGroup, raw)
        except ValidationError:
            continue
        held = FINALIZER in (metadata.get("finalizers") or ())
        created = metadata.get("creationTimestamp") or ""
        found.append(Group(resource, created, "deletionTimestamp" in metadata, held))
    return found


def agents(rights: Rights, system: str, nodes: Iterable[Json]) -> Mapping[str, bool]:
    """Whether the agent is alive, by each node that has one; of `nodes` it is read whether they are lost."""
    lost = {raw["metadata"]["name"] for raw in nodes if is_lost(raw)}
    return agents_by_node(map(read_agent, rights.items("pods", system, labelSelector=AGENT_SELECTOR)), lost)


def alive(agents: Mapping[str, bool]) -> Collection[str]:
    """The nodes whose agents are alive."""
    return {node for node, ready in agents.items() if ready}


def configs(rights: Rights, nodes: Collection[str] | None = None) -> Iterator[NodePinConfig]:
    """The NodePinConfigs of these nodes, or of all: reading one takes a millisecond, and there may be thousands."""
    for raw in rights.items(NodePinConfig.plural):
        if nodes is None or raw["metadata"]["name"] in nodes:
            yield config(raw)


def config(raw: Json) -> NodePinConfig:
    """A NodePinConfig; limits and groups in it that this version does not understand are left out.

    Raises:
        PluginError: more than that is not understood.
    """
    try:
        spec, _ = NodePinConfigSpec.parse(raw["spec"])
        status = NodePinConfigStatus.model_validate(raw["status"]) if "status" in raw else None
        return NodePinConfig.model_validate(
            {"kind": "NodePinConfig", "metadata": raw["metadata"], "spec": spec, "status": status}
        )
    except ValidationError as error:
        raise PluginError(
            f"NodePinConfig {raw['metadata']['name']} is of another version of pinwarden ({_first(error)}): "
            "use a kubectl-pinwarden of the operator's version"
        ) from error


def _resource(kind: type[_Kind], raw: Json) -> _Kind:
    """A resource; a status that is not understood is left out."""
    try:
        return kind.model_validate(raw)
    except ValidationError:
        return kind.model_validate({key: value for key, value in raw.items() if key != "status"})


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
