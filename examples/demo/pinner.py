"""Locks memory up to the last page that the kernel lets it, says how much that is, and keeps trying: what the demo's pods run.

A line is printed whenever something changed, so the last line of the log is the state of now (of one process: see --processes).
"""

import argparse
import ctypes
import mmap
import os
import resource
import time

RETRY_SECONDS = 0.3
libc = ctypes.CDLL(None, use_errno=True)


def say(text: str) -> None:
    """Print a line at once."""
    print(f"process {os.getpid()}: {text}", flush=True)


def wait_for_a_limit() -> None:
    """Return when the process's RLIMIT_MEMLOCK is no longer what the container started with (in bytes)."""
    given = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    say(f"the runtime gave RLIMIT_MEMLOCK {given[0]} bytes; waiting until that changes")
    while (now := resource.getrlimit(resource.RLIMIT_MEMLOCK)) == given:
        time.sleep(0.1)
    say(f"RLIMIT_MEMLOCK is now {now[0]} bytes")


def lock(wanted: int, most: int, pause: float) -> None:
    """Lock up to `wanted` bytes, at most `most` in one call and `pause` seconds after it, for ever."""
    area = mmap.mmap(-1, wanted)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    held, said = 0, ""
    while True:
        refusal = "that is all it wanted"
        step = most
        while held < wanted:
            step = min(step, wanted - held)
            if not libc.mlock(ctypes.c_void_p(start + held), ctypes.c_size_t(step)):
                held += step
                time.sleep(pause)
            elif step > mmap.PAGESIZE:
                step //= 2
            else:
                refusal = f"one page more is refused: {os.strerror(ctypes.get_errno())}"
                break
        if (state := f"holds {held} bytes; {refusal}") != said:
            say(state)
            said = state
        time.sleep(RETRY_SECONDS)


def main() -> None:
    """Start the processes and never end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=8, help="how much each process wants")
    parser.add_argument(
        "--pages-per-call",
        type=int,
        default=16,
        help="halved where the kernel refuses, down to one",
    )
    parser.add_argument(
        "--pause", type=float, default=0, help="seconds after each call that was let through"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--wait-for-limit", action="store_true", help="begin once RLIMIT_MEMLOCK changed"
    )
    options = parser.parse_args()
    for _ in range(options.processes - 1):
        if os.fork() == 0:
            break
    if options.wait_for_limit:
        wait_for_a_limit()
    lock(options.mebibytes << 20, options.pages_per_call * mmap.PAGESIZE, options.pause)


if __name__ == "__main__":
    main()
