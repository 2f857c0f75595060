"""Measure the cost of sampling the borrows of pods, beside smaps, and on idle pods.

Every process of every pod maps and touches one whole object (a memfd): by default 4 GiB, if free
memory allows, by 50 processes in 10 pods with cgroups like a kubelet's. Three samples take turns.
Each is the processor time of this process, with the kernel's work for its calls:

- pinwarden with a walk of every pod;
- smaps, the usual way: the sum of Rss and Pss of the object's mappings from /proc/PID/smaps. It
  answers less: Rss counts a page once for each process, and Pss divides a page by the processes of
  all pods;
- pinwarden again at once, without a change: the cost of each sample on an idle node.

A ratio is the median of the ratios of its pairs; its range is the range of the pairs.

    PYTHONPATH=operator:tools python bench/borrow_cost.py [--mebibytes 4096] [--pods 10]
        [--processes 5] [--rounds 15]
"""

import argparse
import mmap
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from machine import Pod, hierarchy, stop_on_signals

from pinwarden.node.accountant.sampler import FRESH_SECONDS, Borrow, BorrowSampler
from pinwarden.node.linux.pagemap import PageMap
from pinwarden.node.shm.objects import ObjectId, ObjectSet

MIB = 1 << 20
FREE_SHARE = 0.5
GROUP = "group"
SETTLE_SECONDS = 0.2
_MAPPING = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ .{4} [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+)", re.MULTILINE
)
_AMOUNT = re.compile(rb"^(Rss|Pss): +(\d+) kB$", re.MULTILINE)


@contextmanager
def toucher(pod: Pod, file: int, size: int) -> Iterator[int]:
    """A process of a pod that has the whole object in its page tables, and sleeps."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            (pod.container / "cgroup.procs").write_text("0")
            area = mmap.mmap(file, size)
            for page in range(0, size, mmap.PAGESIZE):
                _ = area[page]
            os.write(writer, b"1")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(writer)
        if not os.read(reader, 1):
            raise RuntimeError("a process could not map the object")
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def from_smaps(pids: Sequence[int], one: ObjectId) -> tuple[int, int]:
    """Rss and Pss of the object's mappings in all processes, in bytes."""
    amounts = {b"Rss": 0, b"Pss": 0}
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps").read_bytes()
        found = list(_MAPPING.finditer(text))
        for number, match in enumerate(found):
            if (os.makedev(int(match[1], 16), int(match[2], 16)), int(match[3])) != (
                one.device,
                one.inode,
            ):
                continue
            end = found[number + 1].start() if number + 1 < len(found) else len(text)
            for name, amount in _AMOUNT.findall(text[match.end() : end]):
                amounts[name] += int(amount) << 10
    return amounts[b"Rss"], amounts[b"Pss"]


def timed(measure: Callable[[], object]) -> float:
    """Seconds of processor time of this process."""
    began = time.process_time()
    measure()
    return time.process_time() - began


def size_of_object(wanted: int, processes: int) -> int:
    """Return a size that fits in free memory with its page tables: 8 bytes per page and process."""
    available = int(re.findall(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[0]) << 10
    fits = int(available * FREE_SHARE / (1 + 8 * processes / mmap.PAGESIZE))
    return min(wanted, fits // MIB * MIB)


def compare(
    made: Sequence[Pod], pids: Sequence[int], one: ObjectId, size: int, rounds: int
) -> None:
    """Take turns and print medians and ratios. Raises ValueError if a figure is wrong."""
    pods = {pod.uid: [pod.path, pod.container] for pod in made}
    objects = {GROUP: ObjectSet(objects=frozenset([one]))}
    borrows = BorrowSampler()
    full: list[float] = []
    usual: list[float] = []
    idle: list[float] = []
    skipped = True
    for number in range(rounds + 1):
        now = number * 2 * FRESH_SECONDS
        seen: dict[tuple[str, str], Borrow] = {}

        def sample(now: float = now, seen: dict[tuple[str, str], Borrow] = seen) -> None:
            seen.update(borrows.sample(now, pods, objects, [GROUP], stamps={GROUP: size}))

        whole, summed, walked = timed(sample), timed(lambda: from_smaps(pids, one)), borrows.walked
        again = timed(sample)
        if walked != len(pods) or [each.resident for each in seen.values()] != [size] * len(pods):
            raise ValueError(f"{walked} pods were walked: {seen}")
        if number:  # the first one finds out what the kernel can do
            skipped &= borrows.walked == 0
            for taken, cost in zip((full, usual, idle), (whole, summed, again), strict=True):
                taken.append(cost)
    rss, pss = from_smaps(pids, one)
    print(
        f"every pod borrows {size // MIB} MiB; smaps: Rss {rss // MIB} MiB in all, Pss "
        f"{pss // MIB} MiB"
    )
    print(
        f"one sample, ms of processor time, medians of {rounds}: pinwarden "
        f"{median(full) * 1e3:.2f}, smaps {median(usual) * 1e3:.2f}, pinwarden idle "
        f"{median(idle) * 1e3:.3f}"
        + ("" if skipped else "   (something ran in the pods: not idle)")
    )
    for name, above, below in (
        ("smaps / pinwarden", usual, full),
        ("pinwarden / pinwarden idle", full, idle),
    ):
        ratios = [high / low for high, low in zip(above, below, strict=True)]
        print(f"  {name:<28} {median(ratios):>8.1f}   ({min(ratios):.1f} to {max(ratios):.1f})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mebibytes", type=int, default=4096, help="size of the object")
    parser.add_argument("--pods", type=int, default=10)
    parser.add_argument("--processes", type=int, default=5, help="of each pod")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    stop_on_signals()
    count = options.pods * options.processes
    size = size_of_object(options.mebibytes * MIB, count)
    if size < options.mebibytes * MIB:
        print(f"scaled down to half of what is available: {size // MIB} MiB")
    with hierarchy() as root, ExitStack() as stack:
        made = [
            Pod(uid, root / "kubepods" / f"pod{uid}")
            for uid in (str(uuid.uuid4()) for _ in range(options.pods))
        ]
        for pod in made:
            pod.container.mkdir(parents=True)
        file = os.memfd_create("object")
        stack.callback(os.close, file)
        os.ftruncate(file, size)
        os.posix_fallocate(file, 0, size)
        about = os.fstat(file)
        began = time.monotonic()
        pids = [
            stack.enter_context(toucher(pod, file, size))
            for pod in made
            for _ in range(options.processes)
        ]
        print(
            f"{len(pids)} processes in {len(made)} pods have {size // MIB} MiB mapped and touched "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        time.sleep(SETTLE_SECONDS)
        compare(made, pids, ObjectId(about.st_dev, about.st_ino), size, options.rounds)
        print(
            "page tables are read by",
            "PAGEMAP_SCAN" if PageMap.scans else "their entries in /proc/PID/pagemap",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
