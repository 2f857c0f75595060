"""Read the API server into values of `plan`, for all subcommands.

A user may lack some rights. All requests are made nevertheless, and one message lists the missing
rights.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from pinwarden.api.meta import LabelSelector, describe_error
from pinwarden.api.nodepinconfig import NodePinConfig, NodePinConfigSpec, NodePinConfigStatus
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.plan.decode import AGENT_SELECTOR, agents_by_node, is_lost, read_agent
from pinwarden.plan.group_compiler import FINALIZER, Group
from pinwarden.plugin.client import PINWARDEN, ApiError, Json, PluginClient
from pinwarden.plugin.errors import PluginError

_Kind = TypeVar("_Kind", PinLimit, ClusterPinLimit, SharedMemoryGroup)


class ApiReader:
    """Reads objects and collects missing rights; leaving the context raises an error for them."""

    def __init__(self, client: PluginClient) -> None:
        self._client = client
        self._lacking: list[str] = []

    def __enter__(self) -> "ApiReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raise PluginError if a right was missing."""
        if kind is None and self._lacking:
            raise PluginError(
                f"your user lacks the right to {', to '.join(self._lacking)}. "
                "An administrator can grant the right with the ClusterRole in "
                "docs/kubectl-plugin.md"
            )

    def items(self, resource: str, namespace: str | None = None, **query: str) -> Iterator[Json]:
        """Yield the objects of a list; nothing if the right is missing."""
        try:
            yield from self._client.items(_path(resource, namespace), **query)
        except ApiError as error:
            self._failed(error, "list", resource, namespace)

    def items_if_allowed(self, resource: str, namespace: str | None = None) -> list[Json] | None:
        """Return the objects of a list, None if the right is missing, which is not reported."""
        try:
            return list(self._client.items(_path(resource, namespace)))
        except ApiError as error:
            if error.status == 403:
                return None
            raise

    def get(self, resource: str, name: str, namespace: str | None = None) -> Json | None:
        """Return an object, None if it does not exist or the right is missing."""
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
                "Its chart has the CRDs: helm install pinwarden charts/pinwarden "
                "--namespace pinwarden-system --create-namespace"
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
    """Selectors by namespace and workload, such as `deployment/db`.

    The user may not list the resources in `lacking`.
    """

    by_workload: Mapping[tuple[str, str], LabelSelector]
    lacking: Sequence[str]


def owner_selectors(
    reader: ApiReader, namespace: str | None, workloads: Collection[str]
) -> OwnerSelectors:
    """Return the selectors of the Deployments, StatefulSets and DaemonSets among `workloads`."""
    selectors: dict[tuple[str, str], LabelSelector] = {}
    lacking = []
    for resource in _APPS:
        kind = resource.removesuffix("s")
        if not any(workload.startswith(f"{kind}/") for workload in workloads):
            continue
        raws = reader.items_if_allowed(resource, namespace)
        if raws is None:
            lacking.append(resource)
        for raw in raws or ():
            with suppress(ValidationError):
                selector = LabelSelector.model_validate(raw["spec"]["selector"])
                metadata = raw["metadata"]
                selectors[metadata["namespace"], f"{kind}/{metadata['name']}"] = selector
    return OwnerSelectors(selectors, lacking)


class LimitList(NamedTuple):
    """Limits, and by name the problems of limits that this version cannot read."""

    limits: Sequence[PinLimit | ClusterPinLimit]
    unreadable: Mapping[str, str]


def limits(reader: ApiReader, namespace: str | None, *, cluster: bool) -> LimitList:
    """Return the PinLimits of a namespace, or of all, and with `cluster` all ClusterPinLimits."""
    readable: list[PinLimit | ClusterPinLimit] = []
    unreadable: dict[str, str] = {}
    kinds: list[tuple[type[PinLimit | ClusterPinLimit], str | None]] = [(PinLimit, namespace)]
    if cluster:
        kinds.append((ClusterPinLimit, None))
    for kind, space in kinds:
        for raw in reader.items(kind.plural, space):
            try:
                readable.append(_resource(kind, raw))  # type: ignore[type-var]
            except ValidationError as error:
                name = "/".join(
                    filter(None, (raw["metadata"].get("namespace"), raw["metadata"]["name"]))
                )
                unreadable[f"{kind.__name__} {name}"] = describe_error(error)
    return LimitList(readable, unreadable)


def groups(reader: ApiReader, namespace: str) -> list[Group]:
    """Return the SharedMemoryGroups of a namespace that this version understands."""
    readable = []
    for raw in reader.items(SharedMemoryGroup.plural, namespace):
        metadata = raw["metadata"]
        try:
            resource = _resource(SharedMemoryGroup, raw)
        except ValidationError:
            continue
        has_finalizer = FINALIZER in (metadata.get("finalizers") or ())
        created = metadata.get("creationTimestamp") or ""
        readable.append(Group(resource, created, "deletionTimestamp" in metadata, has_finalizer))
    return readable


def agents(reader: ApiReader, system: str, nodes: Iterable[Json]) -> Mapping[str, bool]:
    """Return for each node with an agent whether the agent is alive; no agent of a lost node is."""
    lost = {raw["metadata"]["name"] for raw in nodes if is_lost(raw)}
    return agents_by_node(
        map(read_agent, reader.items("pods", system, labelSelector=AGENT_SELECTOR)), lost
    )


def alive(agents: Mapping[str, bool]) -> Collection[str]:
    """Return the nodes with a live agent."""
    return {node for node, ready in agents.items() if ready}


def configs(reader: ApiReader, nodes: Collection[str] | None = None) -> Iterator[NodePinConfig]:
    """Yield the NodePinConfigs of these nodes, or of all; parsing takes a millisecond each."""
    for raw in reader.items(NodePinConfig.plural):
        if nodes is None or raw["metadata"]["name"] in nodes:
            yield config(raw)


def config(raw: Json) -> NodePinConfig:
    """Return a NodePinConfig without the limits and groups that this version does not understand.

    Raises:
        PluginError: this version does not understand the rest.
    """
    try:
        spec, _ = NodePinConfigSpec.parse(raw["spec"])
        status = NodePinConfigStatus.model_validate(raw["status"]) if "status" in raw else None
        return NodePinConfig.model_validate(
            {"kind": "NodePinConfig", "metadata": raw["metadata"], "spec": spec, "status": status}
        )
    except ValidationError as error:
        raise PluginError(
            f"NodePinConfig {raw['metadata']['name']} is from another version of pinwarden "
            f"({describe_error(error)}): use kubectl-pinwarden in the version of the operator"
        ) from error


def _resource(kind: type[_Kind], raw: Json) -> _Kind:
    """Return a resource, without its status if this version does not understand it."""
    try:
        return kind.model_validate(raw)
    except ValidationError:
        return kind.model_validate({key: value for key, value in raw.items() if key != "status"})
