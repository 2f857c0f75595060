"""Select names if not all fit: an author of many or large objects does not crowd out others."""

from collections.abc import Mapping, Sequence


def select_fairly(
    names: Sequence[str], capacity: int, sizes: Mapping[str, int] | None = None
) -> set[str]:
    """Return the names for `capacity`, where each name takes its size, or 1.

    Names without a namespace come first. Then comes always the next name of the namespace with the
    smallest sum so far. With equal sizes, the order is the first name of each namespace, then the
    second of each. So each of n namespaces gets at least `capacity` / n. A name too large to fit
    takes nothing from the others.
    """
    sizes = dict.fromkeys(names, 1) if sizes is None else sizes
    if sum(sizes[name] for name in names) <= capacity:
        return set(names)
    sums: dict[str, int] = {}
    order = []
    for position, name in enumerate(names):
        namespace = name.partition("/")[0] if "/" in name else ""
        sums[namespace] = sums.get(namespace, 0) + sizes[name]
        order.append((sums[namespace] if namespace else 0, position, name))
    left = capacity
    selected = set()
    for *_, name in sorted(order):
        if sizes[name] <= left:
            left -= sizes[name]
            selected.add(name)
    return selected
