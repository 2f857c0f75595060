"""Whether the kernel may have removed mapped pages from page tables on its own, from /proc/vmstat.

Reclaim removes pages of any cgroup (try_to_unmap), and counts every inspected page as
scanned. Collapsing small pages into a huge page removes pages too (retract_page_tables), and so
does splitting a huge page (unmap_folio, __split_huge_pmd_locked). Both happen all day to the
anonymous memory of a busy program. So they count only while the node has huge pages of files or
of shared memory.

Migration keeps a page in the page tables. Dropping caches does not touch mapped pages.
"""

import re
from pathlib import Path
from typing import Final

_COUNTER: Final = re.compile(
    rb"^(nr_(?:shmem|file)_hugepages|pgscan_(?:anon|file)|pswpout"
    rb"|thp_(?:collapse_alloc|migration_split|split_page|split_pmd)) (\d+)$",
    re.MULTILINE,
)
_SCANNED: Final = (b"pgscan_anon", b"pgscan_file", b"pswpout")
_HUGE: Final = (b"nr_shmem_hugepages", b"nr_file_hugepages")

ReclaimCounters = tuple[bytes, ...]


def reclaim_counters(proc_root: Path) -> ReclaimCounters | None:
    """Return counters; a change means possible removals from page tables by the kernel.

    Return None if the kernel does not have the counters (before Linux 5.8).
    """
    try:
        counters = dict(_COUNTER.findall((proc_root / "vmstat").read_bytes()))
    except OSError:
        return None
    if not all(name in counters for name in _SCANNED[:2]):
        return None
    if all(counters.get(name, b"0") == b"0" for name in _HUGE):
        return tuple(counters.get(name, b"") for name in _SCANNED)
    return tuple(counters.values())
