"""Recommend the amount of a limit from an observed peak."""

from pinwarden.api.quantity import MAX_BYTES, Quantity

HEADROOM = 0.2
_UNITS = (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))
_LEAST = 4096


def recommend(peak: int | None) -> Quantity | None:
    """Return `peak` with `HEADROOM`, rounded up to an eighth of its power of two and to pages.

    Return None without a peak, for a peak of 0, and if the result is more than a limit may be (H2).
    The peak is sampled, so the result is a lower bound.
    """
    if not peak:
        return None
    wanted = peak + int(peak * HEADROOM)
    step = max(_LEAST, 2 ** (wanted.bit_length() - 1) // 8)
    amount = -(-wanted // step) * step
    if amount > MAX_BYTES:
        return None
    suffix, unit = next((suffix, unit) for suffix, unit in _UNITS if amount % unit == 0)
    return Quantity(f"{amount // unit}{suffix}")
