"""Who finds room where not all do: nobody crowds out others by being many or large."""

from collections.abc import Mapping, Sequence


def select_fairly(names: Sequence[str], most: int, sizes: Mapping[str, int] | None = None) -> set[str]:
    """Those of the names that find room in `most`, where each takes its size, or 1.

    Those of no namespace come first, then always the next one of the namespace that has the least with it: the first of each, the second of
    each, ... where all are of one size. So each of n namespaces is sure of `most` / n. One that does not fit takes no room from others.
    """
    sizes = dict.fromkeys(names, 1) if sizes is None else sizes
    if sum(sizes[name] for name in names) <= most:
        return set(names)
    sums: dict[str, int] = {}
    order = []
    for position, name in enumerate(names):
        namespace = name.partition("/")[0] if "/" in name else ""
        sums[namespace] = sums.get(namespace, 0) + sizes[name]
        order.append((sums[namespace] if namespace else 0, position, name))
    left = most
    fitting = set()
    for *_, name in sorted(order):
        if sizes[name] <= left:
            left -= sizes[name]
            fitting.add(name)
    return fitting
