"""The messages of the loader for programs that a kernel lacks or refuses; the sizes of maps."""

from pathlib import Path

import pytest

from cluster.bpf import compile_program
from pinwarden.node.ebpf.loader import BpfError, BpfObject
from pinwarden.node.linux.bpf import Map

pytestmark = pytest.mark.emulated
LICENSE = """
#define SEC(name) __attribute__((section(name), used))
char LICENSE[] SEC("license") = "GPL";
"""
HEAD = f"""{LICENSE}
int mlock_calls SEC(".data");
SEC("fentry/do_mlock") int count_mlock(void *context) {{ mlock_calls++; return 0; }}
SEC("fentry/no_such_function") int without_target(void *context) {{ return 0; }}
"""
REFUSED = """
SEC("fentry/do_mlock") int read_anything(void *context) { return *(volatile int *)8; }
"""

LONG = f"""{LICENSE}
static unsigned long long (*const bpf_ktime_get_ns)(void) = (void *)5;
SEC("fentry/do_mlock") int long_log(void *context)
{{
	volatile unsigned long long sum = 0;
	for (int i = 0; i < 3000; i++)
		sum += bpf_ktime_get_ns() & i;
	return sum + *(volatile int *)8;
}}
"""
COUNTED = f"""{LICENSE}
struct {{
	int (*type)[2]; /* BPF_MAP_TYPE_ARRAY */
	int (*max_entries)[1];
	unsigned int *key;
	unsigned long long *value;
}} counts SEC(".maps");
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
        assert tried.left_out == {"without_target": "this kernel has no no_such_function"}
        assert tried.recursion_misses() == 0
        with pytest.raises(BpfError, match=r"tried\.bpf\.o has no map accounts"):
            tried.map_fd("accounts")


@pytest.mark.rule("H1")
def test_refused_program_is_left_out_with_the_end_of_the_log(tmp_path: Path) -> None:
    """The others go on."""
    with BpfObject(compiled(tmp_path, HEAD + REFUSED)) as tried:
        tried.load()
        tried.attach()
        assert tried.left_out.keys() == {"without_target", "read_anything"}
        assert "invalid mem access" in tried.left_out["read_anything"]


def test_object_whose_programs_are_all_refused_is_an_error(tmp_path: Path) -> None:
    with BpfObject(compiled(tmp_path, LICENSE + REFUSED)) as tried:
        with pytest.raises(BpfError) as raised:
            tried.load()
        said = str(raised.value)
        assert said.startswith("cannot load tried.bpf.o: Permission denied\nprogram read_anything:")
        assert "invalid mem access" in said


def test_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.bpf.o").write_text("not an object")
    with pytest.raises(BpfError, match=r"cannot open .*text\.bpf\.o"):
        BpfObject(tmp_path / "text.bpf.o")


def test_refusal_with_a_long_log_shows_its_end_and_the_cause(tmp_path: Path) -> None:
    with (
        BpfObject(compiled(tmp_path, LONG)) as tried,
        pytest.raises(BpfError, match=r"^cannot load tried\.bpf\.o: Permission denied\n") as raised,
    ):
        tried.load()
    message = str(raised.value)
    assert "program long_log:" in message
    assert "invalid mem access" in message
    assert len(message.splitlines()) == 14


def test_map_with_other_sizes_is_rejected(tmp_path: Path) -> None:
    with BpfObject(compiled(tmp_path, COUNTED)) as tried:
        tried.load()
        counts = tried.map_fd("counts")
        assert Map(counts, 4, 8).get(bytes(4)) == bytes(8)
        with pytest.raises(ValueError, match="keys of 4 and values of 8 bytes, not 4 and 4"):
            Map(counts, 4, 4)
