"""The namespaces in the spec of a node, apart from the rest of the spec."""

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.plan.limited_namespaces import NamespaceScope


def scope_of(spec: NodePinConfigSpec) -> NamespaceScope:
    limited = spec.limited_namespaces
    return NamespaceScope(None if limited is None else tuple(limited), (*spec.exempt_namespaces,))


def unscoped(spec: NodePinConfigSpec) -> NodePinConfigSpec:
    return spec.model_copy(update={"limited_namespaces": None, "exempt_namespaces": []})


def changed_nodes(
    before: dict[str, NodePinConfigSpec], after: dict[str, NodePinConfigSpec]
) -> set[str]:
    """Return the nodes whose spec differs in more than its namespaces."""
    old = {name: unscoped(spec) for name, spec in before.items()}
    return {name for name, spec in after.items() if unscoped(spec) != old.get(name)}


def is_rescoped(before: dict[str, NodePinConfigSpec], after: dict[str, NodePinConfigSpec]) -> bool:
    """Return whether the namespaces differ in the spec of a node."""
    return any(scope_of(before[name]) != scope_of(after[name]) for name in before & after.keys())
