"""The errors of the loader before it reaches the kernel. tests/kernel has the others."""

from pathlib import Path

import pytest

from pinwarden.node.ebpf import loader
from pinwarden.node.ebpf.loader import BpfError, BpfObject


def test_missing_object_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match=r"ledger\.bpf\.o does not exist: `make bpf` compiles it"):
        BpfObject(tmp_path / "ledger.bpf.o")


def test_kernel_without_btf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ledger.bpf.o").touch()
    monkeypatch.setattr(loader, "VMLINUX", tmp_path / "vmlinux")
    with pytest.raises(BpfError, match=r"the kernel has no BTF at .*CONFIG_DEBUG_INFO_BTF"):
        BpfObject(tmp_path / "ledger.bpf.o")


def test_missing_libbpf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.bpf.o"
    path.touch()
    monkeypatch.setattr(loader, "VMLINUX", path)
    monkeypatch.setattr(loader, "LIBRARY", "libbpf.so.0.missing")
    loader._library.cache_clear()
    with pytest.raises(BpfError, match=r"cannot load libbpf 1\.x: libbpf\.so\.0\.missing"):
        BpfObject(path)
