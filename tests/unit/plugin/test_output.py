"""Tables, the grammar of the command line, and completion."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pinwarden
from pinwarden.plugin.commands import COMMANDS, ordered
from pinwarden.plugin.complete import complete
from pinwarden.plugin.main import run
from pinwarden.plugin.output import age, table


def test_a_table_shows_what_is_absent_and_goes_without_a_head() -> None:
    assert table(("A", "LONG"), [("x", None), ("yyy", 0)]) == "A     LONG\nx     -\nyyy   0\n"
    assert table(("A", "LONG"), [("x", "")], headers=False) == "x   -\n"
    assert table(("A",), [], headers=False) == ""


def test_a_table_is_cut_to_a_width_the_widest_first() -> None:
    text = table(("NAME", "NODE", "N"), [("n" * 40, "m" * 20, 1)], width=40, cut=("NAME", "NODE"))
    assert text.splitlines()[1] == f"{'n' * 15}…   {'m' * 16}…   1"
    assert max(map(len, text.splitlines())) == 40


@given(
    st.lists(
        st.tuples(st.text("ab", max_size=60), st.text("c", max_size=60)), min_size=1, max_size=5
    ),
    st.integers(30, 120),
)
def test_no_line_is_wider_than_the_width_where_columns_may_be_cut(
    rows: list[tuple[str, str]], width: int
) -> None:
    text = table(("FIRST", "SECOND"), rows, width=width, cut=("FIRST", "SECOND"))
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) == len(rows) + 1


def test_colours_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinwarden.plugin.output.has_colour", lambda: True)
    text = table(("LEVEL", "X"), [("Deny", 1), ("Converge", 2)], colours={"Deny": "green"})
    assert (
        text.replace("\033[32m", "").replace("\033[0m", "")
        == "LEVEL      X\nDeny       1\nConverge   2\n"
    )
    assert "\033[32mDeny\033[0m  " in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (172799, "47h"),
        (172800, "2d"),
        (-5, "0s"),
    ],
)
def test_ages_are_told_as_kubectl_tells_them(seconds: int, text: str) -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    assert age(now - timedelta(seconds=seconds), now) == text
    assert age(None, now) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["explain"], "POD"),
        (["top", "--nope"], "--nope"),
        (["top", "-o", "xml"], "xml"),
        (["top", "--names"], "--names"),
        (["completion", "tcsh"], "tcsh"),
        (["top", "--kubeconfig", "/nope/none"], "--kubeconfig /nope/none: there is no such file"),
    ],
)
def test_wrong_usage_ends_with_1_as_kubectl_does(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = run(arguments)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-n a top -A", "top -n a -A"),
        ("--namespace=a -A explain x", "explain --namespace=a -A x"),
        ("top -n a", "top -n a"),
        ("--help", "--help"),
        ("-n", "-n"),
        ("", ""),
    ],
)
def test_flags_may_stand_before_the_subcommand(words: str, expected: str) -> None:
    assert ordered(words.split()) == expected.split()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["top", "--help"], ["recommend", "-h"], ["--version"]]
)
def test_help_goes_to_standard_output(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 0
    assert "kubectl" in capsys.readouterr().out


def test_help_and_the_completion_of_flags_load_no_library() -> None:
    """They must be there at once: no client, no models."""
    script = (
        "import sys; from pinwarden.plugin.complete import complete; "
        "from pinwarden.plugin.commands import parser; "
        "parser().format_help(); complete(['top', '--']); "
        "heavy = ('kubernetes', 'pydantic', 'yaml', 'urllib3'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    path = {"PYTHONPATH": str(Path(pinwarden.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def names(*words: str) -> list[str]:
    return [line.partition("\t")[0] for line in complete(words)]


def test_subcommands_flags_and_choices_are_completed() -> None:
    assert names("")[:-1] == [command.name for command in COMMANDS]
    assert names("ex") == ["explain", ":4"]
    assert complete(["top", "--by"]) == ["--by\ta row for each counter of the kernel", ":4"]
    assert names("top", "--by", "") == ["source", ":4"]
    assert names("top", "-o", "y") == ["yaml", ":4"]
    assert names("top", "--output=j") == ["--output=json", ":4"]
    assert names("completion", "") == ["bash", "zsh", "fish", ":4"]
    assert names("completion", "bash", "") == [":4"]
    assert names("top", "--kubeconfig", "") == [":0"]
    assert names("nonsense", "") == [":4"]
    assert names("top", "") == [":4"]


def test_nothing_is_said_where_names_cannot_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert names("explain", "--kubeconfig", "/nope/none", "") == [":4"]
    assert names("explain", "--kubeconfig=/nope/none", "-n", "") == [":4"]
    assert names("top", "--kubeconfig", "/nope/none", "--context", "") == [":4"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_ask_the_program_that_kubectl_asks(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell]) == 0
    assert "kubectl_complete-pinwarden" in capsys.readouterr().out
