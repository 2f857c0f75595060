"""The limits recently set on the processes of one subject, with the original limits."""

from collections import OrderedDict

from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.linux.procfs import ProcessKey

_REMEMBERED = 1024


class AllocationHistory:
    """Maps applied limits to the original limits of their process.

    `restored` are the processes of the subject without a constraint and with original limits.
    """

    def __init__(self) -> None:
        self._original: OrderedDict[Limits, Limits] = OrderedDict()
        self.restored: frozenset[ProcessKey] = frozenset()

    def remember(self, applied: Limits, original: Limits) -> None:
        """Add a pair. Two originals of the same applied limits become the smaller of both.

        Beyond `_REMEMBERED` pairs, the least recently added pair is removed.
        """
        known = self._original.get(applied, original)
        self._original[applied] = Limits(
            min(known.soft, original.soft), min(known.hard, original.hard)
        )
        self._original.move_to_end(applied)
        if len(self._original) > _REMEMBERED:
            self._original.popitem(last=False)

    def original(self, current: Limits) -> Limits | None:
        """Return the original limits of a process with exactly these applied limits, if any."""
        return self._original.get(current)

    def clear(self) -> None:
        """Forget all pairs."""
        self._original.clear()

    def __bool__(self) -> bool:
        return bool(self._original)
