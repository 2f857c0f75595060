"""Map a part of a shared file and write to it: the program of the demo's pods that share memory.

The pod's annotation `mebibytes: "8"` orders the program to map the first 8 MiB. The last line of
the log is the present state.
"""

import mmap
import os
import sys
import time
from pathlib import Path

ORDER = Path("/order/mebibytes")
MIB = 1 << 20
RETRY_SECONDS = 0.3


def mapped(file: int, offset: int) -> mmap.mmap:
    """Map a MiB of the file at an offset in bytes, write to each page, and return the mapping."""
    area = mmap.mmap(file, MIB, offset=offset)
    for page in range(0, MIB, mmap.PAGESIZE):
        area[page] = 1
    return area


def order(now: int) -> int:
    """Return the MiB of the last order, `now` before the first order."""
    try:
        return int(ORDER.read_text().strip() or now)
    except FileNotFoundError:
        return now


def main() -> None:
    """Follow orders for ever."""
    file = os.open(sys.argv[1], os.O_RDWR)
    areas: list[mmap.mmap] = []
    said = ""
    while True:
        wanted = order(len(areas))
        refusal = ""
        while len(areas) > wanted:
            areas.pop().close()
        while len(areas) < wanted and not refusal:
            try:
                areas.append(mapped(file, len(areas) * MIB))
            except OSError as error:
                refusal = f"; one MiB more is denied: {error.strerror}"
        if (state := f"maps {len(areas) * MIB} bytes{refusal}") != said:
            print(state, flush=True)
            said = state
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
