"""`pinwarden ebpf --self-test`: its output and its failures."""

import errno
import json
from collections.abc import Sequence

import pytest

from pinwarden.cli.main import main
from pinwarden.node.ebpf import selftest
from pinwarden.node.ebpf.loader import BpfError
from pinwarden.node.ebpf.selftest import SourceResult

RESULTS = (
    SourceResult("mlock", True, True, False, False, ""),
    SourceResult("memfd_secret", False, False, None, None, "the kernel has it disabled"),
)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "run", lambda *_: RESULTS)


@pytest.mark.usefixtures("results")
def test_table_has_a_row_for_each_operation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ebpf", "--self-test"]) == 0
    _, _, head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["SOURCE", "COUNTED", "UNCOUNTED"]
    assert rows[0].split() == ["mlock", "yes", "yes", "no", "no", "-"]
    assert rows[1].split(maxsplit=5) == [
        *("memfd_secret", "no", "no", "-", "-"),
        "the kernel has it disabled",
    ]


@pytest.mark.rule("H2")
@pytest.mark.usefixtures("results")
def test_json_omits_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ebpf", "--self-test", "-o", "json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["sources"]
    assert first["survivesExit"] is False
    assert "survivesExit" not in second


@pytest.mark.parametrize(
    "error", [BpfError("cannot load ledger.bpf.o: it needs CAP_BPF"), OSError(errno.EROFS, "no")]
)
def test_failure_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: object) -> Sequence[SourceResult]:
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
