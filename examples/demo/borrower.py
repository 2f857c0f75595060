"""Maps as much of a shared file as it is told to, and writes it: what the demo's pods that share memory run.

The pod's annotation `mebibytes: "8"` is the order to have the first 8 MiB mapped. The last line of the log is the state of now.
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
    """A MiB of the file at an offset in bytes, mapped, and each page of it written to."""
    area = mmap.mmap(file, MIB, offset=offset)
    for page in range(0, MIB, mmap.PAGESIZE):
        area[page] = 1
    return area


def order(now: int) -> int:
    """The MiB that were ordered last: as many as there are `now` before the first order."""
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
                refusal = f"; one MiB more is refused: {error.strerror}"
        if (state := f"maps {len(areas) * MIB} bytes{refusal}") != said:
            print(state, flush=True)
            said = state
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
