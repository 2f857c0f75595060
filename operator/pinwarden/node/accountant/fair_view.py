"""The memory of a pod itself: one half of the fair view (M11)."""

from collections.abc import Iterable
from pathlib import Path

from pinwarden.node.linux.cgroupfs import MemoryUsage, memory_usage


def pod_memory(cgroups: Iterable[Path]) -> MemoryUsage | None:
    """Return the memory of a pod with these cgroups; None if unknown (H2)."""
    usages = [usage for path in cgroups if (usage := memory_usage(path))]
    if not usages:
        return None
    return MemoryUsage(
        sum(usage.current for usage in usages), sum(usage.anonymous for usage in usages)
    )
