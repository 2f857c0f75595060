"""Who finds room where not all do: nobody crowds out others by being many."""

from collections.abc import Sequence


def in_turn(names: Sequence[str], most: int) -> set[str]:
    """At most so many of the names: those of no namespace first, then the first of each namespace, the second of each, ..."""
    if len(names) <= most:
        return set(names)
    turns: dict[str, int] = {}
    order = []
    for position, name in enumerate(names):
        namespace = name.partition("/")[0] if "/" in name else ""
        turns[namespace] = turns.get(namespace, 0) + 1
        order.append((turns[namespace] if namespace else 0, position, name))
    return {name for *_, name in sorted(order)[:most]}
