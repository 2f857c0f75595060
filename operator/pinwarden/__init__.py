"""Pinwarden limits pinned memory and accounts shared memory per pod, as Kubernetes custom resources.

The packages, from the bottom up (a layer imports only from those before it):

- `pinwarden.common`: what every layer may use.
- `pinwarden.api`: the custom resources as pydantic models, the only source of the CRDs.
- `pinwarden.plan`: the rules, as pure functions over values.
- `pinwarden.controller`: the operator, which turns PinLimits into one NodePinConfig per node.
- `pinwarden.node`: what runs on a node, each process in a room of its own: agent, gate, accountant and holder.
- `pinwarden.plugin`: the `kubectl pinwarden` command, which explains what the API server has.
- `pinwarden.cli`: the `pinwarden` command.
"""

__version__ = "0.1.0"

SYSTEM_NAMESPACE = "pinwarden-system"
"""Where pinwarden itself runs, unless it is told otherwise."""
