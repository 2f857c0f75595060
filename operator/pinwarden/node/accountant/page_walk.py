"""The mapped and the resident parts of wanted objects in the processes of one pod.

The processes are read one after the other. Page tables are read only for pages not seen in an
earlier process. So an object mapped in fifty processes is walked once, and only
the missing pages are searched in the next process.

A process continues meanwhile. Its mappings are read before and after its page tables. If they
differ, the addresses may have had other objects, and the process is read again. If a process
changes on each of `_ATTEMPTS` reads, its pages are unknown, and the result says so (H2).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pinwarden.node.linux.intervals import EMPTY, Intervals, union
from pinwarden.node.linux.pagemap import PageMap
from pinwarden.node.shm.objects import ObjectId
from pinwarden.node.shm.regions import ProcessMaps, Region, RegionFilter

_ATTEMPTS: Final = 5
MOST_MAPPINGS: Final = 1 << 17
"""The wanted mappings read in a pod: twice the maximum of a process (vm.max_map_count)."""
_MOST_GAPS = 16
"""A mapping with more unknown gaps is walked at once from the first gap to the last."""


@dataclass(slots=True)
class PodPages:
    """Byte offsets in each object. With a `reason` something was not read, so more may exist."""

    mapped: dict[ObjectId, Intervals] = field(default_factory=dict)
    resident: dict[ObjectId, Intervals] = field(default_factory=dict)
    reason: str = ""


def walk(
    proc_root: Path,
    pids: Iterable[int],
    wanted: RegionFilter,
    is_walked: Callable[[ObjectId], bool],
) -> PodPages:
    """Return the pages of these processes; resident ones only of objects with `is_walked`.

    If a process ends meanwhile, its pages are missing, or some of them.
    """
    pages = PodPages()
    pieces: dict[ObjectId, set[tuple[int, int]]] = {}
    count = 0
    for pid in pids:
        if count > MOST_MAPPINGS:
            pages.reason = f"only the first {MOST_MAPPINGS} mappings of objects are read"
            break
        process = ProcessMaps(proc_root, pid)
        try:
            regions = wanted.regions(process)
            for _ in range(_ATTEMPTS):
                by_object = _by_object(regions)
                walked = {
                    identity: mappings
                    for identity, mappings in by_object.items()
                    if is_walked(identity)
                }
                resident = _walk_tables(pages, process.folder, walked)
                before, regions = regions, wanted.regions(process) if resident else regions
                if before == regions:
                    break
            else:
                pages.reason = f"process {pid} maps and unmaps faster than it can be read"
            for identity, mappings in by_object.items():
                ends = (
                    (region.offset, region.offset + region.end - region.start)
                    for region in mappings
                )
                pieces.setdefault(identity, set()).update(ends)
            count += len(regions)
            pages.resident.update(resident)
        except ProcessLookupError:
            continue
        except OSError as error:
            pages.reason = f"process {pid} cannot be read: {error.strerror}"
    pages.mapped = {identity: Intervals.of(ends) for identity, ends in pieces.items()}
    return pages


def _by_object(regions: Iterable[Region]) -> dict[ObjectId, list[Region]]:
    by_object: dict[ObjectId, list[Region]] = {}
    for region in regions:
        by_object.setdefault(region.object, []).append(region)
    return by_object


def _walk_tables(
    pages: PodPages, folder: str, by_object: Mapping[ObjectId, Sequence[Region]]
) -> dict[ObjectId, Intervals]:
    """Return the resident offsets of each object with unknown offsets in these regions.

    The result includes the offsets known before. The page tables are opened only if needed.
    """
    more: dict[ObjectId, Intervals] = {}
    tables: PageMap | None = None
    try:
        for identity, regions in by_object.items():
            known = pages.resident.get(identity, EMPTY)
            parts = []
            for region, start, end in _unknown(regions, known):
                tables = tables or PageMap(folder)
                present = tables.resident(start, end, shared=region.shared)
                parts.append(present.moved(region.offset - region.start))
            if parts:
                more[identity] = union([known, *parts])
    finally:
        if tables:
            tables.close()
    return more


def _unknown(regions: Sequence[Region], known: Intervals) -> Iterator[tuple[Region, int, int]]:
    """Yield the addresses of each region whose offsets are not known."""
    for region in regions:
        to_address = region.start - region.offset
        gaps = known.gaps(region.offset, region.offset + region.end - region.start)
        if len(gaps) > _MOST_GAPS:
            gaps = [(gaps[0][0], gaps[-1][1])]
        for start, end in gaps:
            yield region, start + to_address, end + to_address
