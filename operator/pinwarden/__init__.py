"""Pinwarden limits pinned memory and accounts shared memory per pod, by custom resources.

The packages, from the bottom up (a layer imports only from those before it):

- `pinwarden.common`: helpers for every layer.
- `pinwarden.api`: the custom resources as pydantic models, the only source of the CRDs.
- `pinwarden.plan`: the rules, as pure functions over values.
- `pinwarden.controller`: the operator, which turns PinLimits into one NodePinConfig per node.
- `pinwarden.node`: the processes of a node, each in a room of its own: agent, gate, accountant,
  holder and nri.
- `pinwarden.plugin`: the `kubectl pinwarden` command, which explains the objects of the API server.
- `pinwarden.cli`: the `pinwarden` command.
"""

__version__ = "0.1.0"

SYSTEM_NAMESPACE = "pinwarden-system"
"""The default namespace of pinwarden itself."""
