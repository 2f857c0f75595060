"""What the loader says of programs that a kernel lacks or refuses."""

from pathlib import Path

import pytest

from cluster.bpf import compile_program
from pinwarden.node.ebpf.loader import BpfError, BpfObject

pytestmark = pytest.mark.emulated
HEAD = """
#define SEC(name) __attribute__((section(name), used))
char LICENSE[] SEC("license") = "GPL";
int mlock_calls SEC(".data");
SEC("fentry/do_mlock") int count_mlock(void *context) { mlock_calls++; return 0; }
SEC("fentry/no_such_function") int without_target(void *context) { return 0; }
"""
REFUSED = """
SEC("fentry/do_mlock") int read_anything(void *context) { return *(volatile int *)8; }
"""


def compiled(folder: Path, text: str) -> Path:
    source, target = folder / "tried.bpf.c", folder / "tried.bpf.o"
    source.write_text(text)
    compile_program(source, target)
    return target


def test_program_without_a_target_is_left_out(tmp_path: Path) -> None:
    with BpfObject(compiled(tmp_path, HEAD)) as tried:
        tried.load()
        tried.attach()
        assert tried.left_out == ["no_such_function"]
        assert tried.recursion_misses() == 0
        with pytest.raises(BpfError, match=r"tried\.bpf\.o has no map accounts"):
            tried.map_fd("accounts")


def test_refused_program_is_named_with_the_end_of_the_log(tmp_path: Path) -> None:
    with BpfObject(compiled(tmp_path, HEAD + REFUSED)) as tried:
        with pytest.raises(BpfError) as raised:
            tried.load()
        said = str(raised.value)
        assert said.startswith("cannot load tried.bpf.o: Permission denied\nprogram read_anything:")
        assert "invalid mem access" in said
        assert "count_mlock" not in said


def test_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.bpf.o").write_text("not an object")
    with pytest.raises(BpfError, match=r"cannot open .*text\.bpf\.o"):
        BpfObject(tmp_path / "text.bpf.o")
