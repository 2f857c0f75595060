"""The order in which a suite's modules begin."""

from collections.abc import Sequence

import pytest


def put_first(items: list[pytest.Item], modules: Sequence[str]) -> None:
    """Sort collected tests: these modules first, in this order, then all others unchanged."""
    ranks = {name: rank for rank, name in enumerate(modules)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
