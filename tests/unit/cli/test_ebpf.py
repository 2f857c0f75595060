"""`pinwarden ebpf --self-test`: its output and its failures."""

import errno
import json

import pytest

from pinwarden.cli.main import main
from pinwarden.node.ebpf import selftest
from pinwarden.node.ebpf.loader import BpfError
from pinwarden.node.ebpf.selftest import OperationResult, SelfTest

DONE = SelfTest(
    (
        OperationResult("mlock", True, True, False, False, ""),
        OperationResult("memfd_secret", None, None, None, None, "the kernel has it disabled"),
    ),
    {"unmap_range": "this kernel has no do_mas_munmap"},
)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "run", lambda *_: DONE)


@pytest.mark.usefixtures("results")
def test_table_has_a_row_for_each_operation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ebpf", "--self-test"]) == 0
    _, _, head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["OPERATION", "COUNTED", "UNCOUNTED"]
    assert rows[0].split() == ["mlock", "yes", "yes", "no", "no", "-"]
    assert rows[1].split(maxsplit=5) == [
        *("memfd_secret", "unknown", "unknown", "unknown", "unknown"),
        "the kernel has it disabled",
    ]
    assert rows[2:] == [
        "",
        "Program unmap_range is not attached: this kernel has no do_mas_munmap",
    ]


@pytest.mark.rule("H2")
@pytest.mark.usefixtures("results")
def test_json_omits_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ebpf", "--self-test", "-o", "json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["operations"]
    assert first["staysAfterExit"] is False
    assert "staysAfterExit" not in second
    assert "counted" not in second


@pytest.mark.parametrize(
    "error", [BpfError("cannot load ledger.bpf.o: it needs CAP_BPF"), OSError(errno.EROFS, "no")]
)
def test_failure_is_printed_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: object) -> SelfTest:
        raise error

    monkeypatch.setattr(selftest, "run", fail)
    assert main(["ebpf", "--self-test"]) == 1
    said = capsys.readouterr()
    assert said.err == f"pinwarden ebpf: {error}\n"
    assert not said.out


def test_self_test_must_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["ebpf"])
    assert raised.value.code == 2
    assert "--self-test" in capsys.readouterr().err
