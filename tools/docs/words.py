"""Count the words that make English hard to read, and find sentences that are too long.

Two rules of `docs/CODING_STYLE.md` can be counted, one for code and one for pages:

- the docstrings of a module in `operator/` use the words of `RATES` rarely: no more often than the
  rate, rounded up, and less often than the rate in all modules together;
- a sentence of a page has fewer than `MAX_WORDS` words, outside tables and code.

`words.txt` lists the files that broke a rule when the rules came. The list may only shrink: a unit
test fails for a file that breaks a rule and is not listed, and for a listed file that meets the
rules. New text therefore meets them.

Usage: `words.py` prints the figures of the project, `words.py FILE...` names the problems of
files, and `words.py --write` writes the list.
"""

import ast
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT: Final = Path(__file__).resolve().parents[2]
LIST: Final = Path(__file__).with_name("words.txt")
RATES: Final = {"what": 3, "that": 10, "it": 12}
"""How often each word may occur in 1,000 words of docstrings."""
MAX_WORDS: Final = 30
_CODE = re.compile(r"``[^`]*``|`[^`]*`")
_WORD = re.compile(r"[^\W\d_][\w'-]*")
_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(\[`A-Z0-9])")
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path = ROOT) -> list[Path]:
    """Return the modules whose docstrings are counted."""
    return sorted((root / "operator").rglob("*.py"))


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages whose sentences are measured."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstring of a module, and of each class, function and attribute in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED):
            for statement in node.body:
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        yield text


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without code in backticks."""
    return [word.lower() for word in _WORD.findall(_CODE.sub(" ", text))]


def rates(texts: Iterable[str]) -> tuple[int, dict[str, float]]:
    """Return the number of words, and how often each word of `RATES` occurs in 1,000."""
    counts = Counter(word for text in texts for word in words(text))
    total = counts.total()
    return total, {word: 1000 * counts[word] / max(total, 1) for word in RATES}


def sentences(markdown: str) -> Iterator[str]:
    """Yield the sentences of a page, each with its code spans, outside tables and code blocks."""
    in_table = False
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type in ("table_open", "table_close"):
            in_table = token.type == "table_open"
        elif token.type == "inline" and not in_table:
            yield from _END.split(_text(token))


def _text(inline: Token) -> str:
    parts = {"softbreak": " ", "hardbreak": " ", "link_open": "[", "link_close": "]"}
    return "".join(
        f"`{child.content}`"
        if child.type == "code_inline"
        else parts.get(child.type, child.content)
        for child in inline.children or []
    )


def length(sentence: str) -> int:
    """Return the number of words of a sentence; code in backticks is one word."""
    return len(_CODE.sub("code", sentence).split())


def problems(path: Path) -> list[str]:
    """Return how a module or a page breaks the rules."""
    text = path.read_text()
    if path.suffix == ".md":
        return [
            f"{length(sentence)} words, not fewer than {MAX_WORDS}: {sentence}"
            for sentence in sentences(text)
            if length(sentence) >= MAX_WORDS
        ]
    total, by_word = rates(docstrings(text))
    counts = {word: round(rate * total / 1000) for word, rate in by_word.items()}
    allowed = {word: math.ceil(rate * total / 1000) for word, rate in RATES.items()}
    return [
        f"{word!r} {count} times in {total} words, more than {allowed[word]}"
        for word, count in counts.items()
        if count > allowed[word]
    ]


def breaking(root: Path = ROOT) -> list[str]:
    """Return the names of the files that break a rule."""
    files = [*modules(root), *pages(root)]
    return [path.relative_to(root).as_posix() for path in files if problems(path)]


def listed() -> list[str]:
    """Return the names of the files that may break a rule still."""
    return LIST.read_text().split()


def rates_of(paths: Iterable[Path]) -> tuple[int, dict[str, float]]:
    """Return the number of words in docstrings of modules, and the rates of all together."""
    return rates(text for path in paths for text in docstrings(path.read_text()))


def summary(root: Path = ROOT) -> Iterator[str]:
    """Yield the figures of the project."""
    total, by_word = rates_of(modules(root))
    yield f"{total} words in docstrings of operator/; in 1,000 words:"
    yield from (
        f"  {word}: {rate:.1f}, under {RATES[word]} wanted" for word, rate in by_word.items()
    )
    lengths = [
        (length(sentence), path.relative_to(root).as_posix(), sentence)
        for path in pages(root)
        for sentence in sentences(path.read_text())
    ]
    longest, page, sentence = max(lengths)
    yield f"longest sentence: {longest} words, under {MAX_WORDS} wanted, in {page}: {sentence}"
    yield f"{len(breaking(root))} files break a rule"


def main(arguments: list[str]) -> int:
    """Print figures or problems, or write the list; return 1 if a named file breaks a rule."""
    if arguments == ["--write"]:
        LIST.write_text("".join(f"{name}\n" for name in breaking()))
        return 0
    if not arguments:
        print(*summary(), sep="\n")
        return 0
    found = [f"{name}: {problem}" for name in arguments for problem in problems(Path(name))]
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
