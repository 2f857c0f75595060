"""Words of docstrings are counted, and sentences of pages measured, as CODING_STYLE.md says."""

from pathlib import Path

import pytest

from docs import words

SOURCE = '''"""Count what
is there."""
text = "what"

class Room:
    """A room that is there, like `what`."""

    size: int
    """Its size, if it has ``that``."""

    async def open(self):
        """Open it."""
'''
PAGE = """# One heading. Two

First sentence with `code of many words` here.
It goes on! Is this the third? e.g. not a new one

| a table. | of words |
| --- | --- |
| not read. | Not read. |

- An item: [a link](to.md) *and more*. [a/path](b) follows.

```
Not. Read.
```
"""


def test_docstrings_of_module_class_attribute_and_method_are_found() -> None:
    assert sorted(text.split()[0] for text in words.docstrings(SOURCE)) == [
        "A",
        "Count",
        "Its",
        "Open",
    ]


def test_rates_leave_out_code_in_backticks() -> None:
    total, rates = words.rates(words.docstrings(SOURCE))
    assert total == 17
    assert rates == {"what": 1000 / 17, "that": 1000 / 17, "it": 2000 / 17}


def test_sentences_leave_out_tables_and_code_blocks() -> None:
    assert list(words.sentences(PAGE)) == [
        "One heading.",
        "Two",
        "First sentence with `code of many words` here.",
        "It goes on!",
        "Is this the third? e.g. not a new one",
        "An item: [a link] and more.",
        "[a/path] follows.",
    ]


def test_length_counts_a_code_span_as_one_word() -> None:
    assert words.length("First sentence with `code of many words` here.") == 5


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("long.md", "word " * words.MAX_WORDS, 1),
        ("short.md", "word " * (words.MAX_WORDS - 1) + "end. " + "word " * 9, 1),
        ("fine.md", "word " * (words.MAX_WORDS - 1) + "\n", 0),
        ("each_once.py", '"""Say what, and that it is."""', 0),
        ("what_twice.py", '"""Say what is what."""', 1),
        ("that_twice.py", '"""Say that, not that."""', 1),
    ],
)
def test_problems_name_long_sentences_and_frequent_words(
    tmp_path: Path, name: str, text: str, found: int
) -> None:
    (tmp_path / name).write_text(text)
    assert len(words.problems(tmp_path / name)) == found


def test_breaking_files_are_named_from_the_root(tmp_path: Path) -> None:
    for name, text in {
        "README.md": "Fine.",
        "CONTRIBUTING.md": "Fine.",
        "docs/how-to/a.md": "word " * 40,
        "operator/b.py": '"""What is what."""',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert words.breaking(tmp_path) == ["operator/b.py", "docs/how-to/a.md"]


def test_files_meet_the_rules_or_are_listed() -> None:
    new = set(words.breaking()) - set(words.listed())
    problems = {name: words.problems(words.ROOT / name) for name in sorted(new)}
    assert problems == {}, "rewrite these sentences as docs/CODING_STYLE.md says"


def test_modules_that_are_not_listed_keep_the_rates_together() -> None:
    listed = set(words.listed())
    new = [
        path for path in words.modules() if path.relative_to(words.ROOT).as_posix() not in listed
    ]
    _, rates = words.rates_of(new)
    assert {word: rate for word, rate in rates.items() if rate >= words.RATES[word]} == {}


def test_listed_files_break_a_rule_still() -> None:
    assert set(words.listed()) - set(words.breaking()) == set(), (
        "these files meet the rules: run `python tools/docs/words.py --write`"
    )
