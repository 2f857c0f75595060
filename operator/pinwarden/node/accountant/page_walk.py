"""What the processes of one pod have of wanted objects: mapped, and resident.

They are read one after the other: what a process has mapped, and then its page tables, but only where no process before it had the page.
So an object that fifty processes of a pod have mapped whole is walked once, and what the first of them lacks is looked for in the next.

A process goes on meanwhile. What it has mapped is read before and after its page tables; where it is not the same, addresses may have stood
for something else, and it is read again. One that does not keep still for `_ATTEMPTS` is not known, which is said (H2).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pinwarden.node.linux.intervals import EMPTY, Intervals, union
from pinwarden.node.linux.pagemap import PageMap
from pinwarden.node.shm.objects import ObjectId
from pinwarden.node.shm.regions import ProcessMaps, Region, RegionFilter

_ATTEMPTS = 5
MOST_MAPPINGS = 1 << 17
"""Mappings of wanted objects that are looked at in a pod: twice what a process may have at the most (vm.max_map_count)."""
_MOST_GAPS = 16
"""A mapping with more gaps in what is known of it is walked from the first to the last of them at once."""


@dataclass(slots=True)
class Found:
    """Byte offsets in each object. Where there is a `reason`, something could not be read, and more may be there."""

    mapped: dict[ObjectId, Intervals] = field(default_factory=dict)
    resident: dict[ObjectId, Intervals] = field(default_factory=dict)
    reason: str = ""


def walk(
    proc_root: Path, pids: Iterable[int], wanted: RegionFilter, is_walked: Callable[[ObjectId], bool]
) -> Found:
    """Reads these processes; page tables only of objects that `is_walked` says. One that ends meanwhile is left out, or partly so."""
    found = Found()
    pieces: dict[ObjectId, set[tuple[int, int]]] = {}
    count = 0
    for pid in pids:
        if count > MOST_MAPPINGS:
            found.reason = (
                f"it has more than {MOST_MAPPINGS} mappings of wanted objects, and no more are looked at"
            )
            break
        process = ProcessMaps(proc_root, pid)
        try:
            regions = wanted.regions(process)
            for _ in range(_ATTEMPTS):
                by_object = _by_object(regions)
                tables = {one: some for one, some in by_object.items() if is_walked(one)}
                resident = _walk_tables(found, process.folder, tables)
                before, regions = regions, wanted.regions(process) if resident else regions
                if before == regions:
                    break
            else:
                found.reason = f"process {pid} maps and unmaps faster than it can be read"
            for one, some in by_object.items():
                ends = ((each.offset, each.offset + each.end - each.start) for each in some)
                pieces.setdefault(one, set()).update(ends)
            count += len(regions)
            found.resident.update(resident)
        except ProcessLookupError:
            continue
        except OSError as error:
            found.reason = f"process {pid} cannot be read: {error.strerror}"
    found.mapped = {one: Intervals.of(extent) for one, extent in pieces.items()}
    return found


def _by_object(regions: Iterable[Region]) -> dict[ObjectId, list[Region]]:
    found: dict[ObjectId, list[Region]] = {}
    for region in regions:
        found.setdefault(region.object, []).append(region)
    return found


def _walk_tables(
    found: Found, folder: str, by_object: Mapping[ObjectId, Sequence[Region]]
) -> dict[ObjectId, Intervals]:
    """What was found before and these mappings have resident, where that is more. Page tables are opened only if anything is unknown."""
    more: dict[ObjectId, Intervals] = {}
    tables: PageMap | None = None
    try:
        for one, regions in by_object.items():
            have = found.resident.get(one, EMPTY)
            parts = []
            for region, start, end in _unknown(regions, have):
                tables = tables or PageMap(folder)
                present = tables.resident(start, end, shared=region.shared)
                parts.append(present.moved(region.offset - region.start))
            if parts:
                more[one] = union([have, *parts])
    finally:
        if tables:
            tables.close()
    return more


def _unknown(regions: Sequence[Region], have: Intervals) -> Iterator[tuple[Region, int, int]]:
    """The addresses of each mapping at which it has what is not in `have`."""
    for region in regions:
        to_address = region.start - region.offset
        gaps = have.gaps(region.offset, region.offset + region.end - region.start)
        if len(gaps) > _MOST_GAPS:
            gaps = [(gaps[0][0], gaps[-1][1])]
        for start, end in gaps:
            yield region, start + to_address, end + to_address
