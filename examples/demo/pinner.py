"""Lock as much memory as the kernel allows, print the amount, and retry: the demo's pods run this.

The program prints a line for each change, so the last line of the log is the present state (of one
process: see --processes).
"""

import argparse
import ctypes
import mmap
import os
import resource
import time

RETRY_SECONDS = 0.3
RUNTIME_BYTES = 8 << 20
libc = ctypes.CDLL(None, use_errno=True)


def say(text: str) -> None:
    """Print a line at once."""
    print(f"process {os.getpid()}: {text}", flush=True)


def wait_for_a_limit() -> None:
    """Return when RLIMIT_MEMLOCK differs from the usual value of container runtimes."""
    say(f"waiting until RLIMIT_MEMLOCK is not {RUNTIME_BYTES} bytes")
    while (limit := resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]) == RUNTIME_BYTES:
        time.sleep(0.1)
    say(f"RLIMIT_MEMLOCK is {limit} bytes")


def lock(wanted: int, most: int, pause: float) -> None:
    """Lock up to `wanted` bytes for ever, `most` in a call, with `pause` seconds between."""
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
                refusal = f"one page more is denied: {os.strerror(ctypes.get_errno())}"
                break
        if (state := f"holds {held} bytes; {refusal}") != said:
            say(state)
            said = state
        time.sleep(RETRY_SECONDS)


def main() -> None:
    """Start the processes and never end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=8, help="how much each process locks")
    parser.add_argument(
        "--pages-per-call",
        type=int,
        default=16,
        help="halved if the kernel denies, down to one",
    )
    parser.add_argument("--pause", type=float, default=0, help="seconds after each allowed call")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--wait-for-limit", action="store_true", help="begin once RLIMIT_MEMLOCK is not 8 MiB"
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
