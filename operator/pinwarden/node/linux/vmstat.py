"""Whether the kernel may have taken mapped pages out of page tables on its own, from /proc/vmstat.

Reclaim does (try_to_unmap), of whatever cgroup: every page it looks at is counted as scanned, also one that stays. Making huge pages of
small ones does (retract_page_tables), and so does splitting one (unmap_folio, __split_huge_pmd_locked). Both happen to a busy program's
own anonymous memory all day: they count only while the node has huge pages of files or shared memory at all.

Migration does not: a page on the move stays in the tables. Nor does dropping caches, which leaves mapped pages alone.
"""

import re
from pathlib import Path

_COUNTER = re.compile(
    rb"^(nr_(?:shmem|file)_hugepages|pgscan_(?:anon|file)|pswpout|thp_(?:collapse_alloc|migration_split|split_page|split_pmd)) (\d+)$",
    re.MULTILINE,
)
_SCANNED = (b"pgscan_anon", b"pgscan_file", b"pswpout")
_HUGE = (b"nr_shmem_hugepages", b"nr_file_hugepages")

Pressure = tuple[bytes, ...]


def pressure(proc_root: Path) -> Pressure | None:
    """Other values once pages may have been taken out of page tables; None where the kernel does not tell (before 5.8)."""
    try:
        counters = dict(_COUNTER.findall((proc_root / "vmstat").read_bytes()))
    except OSError:
        return None
    if not all(name in counters for name in _SCANNED[:2]):
        return None
    if all(counters.get(name, b"0") == b"0" for name in _HUGE):
        return tuple(counters.get(name, b"") for name in _SCANNED)
    return tuple(counters.values())
