"""Each relative link of a Markdown file leads to a file, and each anchor to a heading."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from myst_parser.slugs import github_slugify

ROOT = Path(__file__).parents[3]
UNREAD = {"build", "node_modules", "wheels"}


def pages() -> list[Path]:
    """Return the Markdown files of the repository, without files that tools leave in a checkout."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in UNREAD]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


PAGES = pages()


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def links(page: Path) -> Iterator[str]:
    """Yield the targets of the links of a page, except those to other sites."""
    for block in tokens(page):
        for token in block.children or []:
            target = token.attrGet("href") if token.type == "link_open" else token.attrGet("src")
            if isinstance(target, str) and "://" not in target and not target.startswith("mailto:"):
                yield unquote(target)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of the headings; a second heading with the same words has a number."""
    seen: dict[str, int] = {}
    found = set()
    parsed = tokens(page)
    for index, block in enumerate(parsed):
        if block.type == "heading_open":
            words = "".join(part.content for part in parsed[index + 1].children or [])
            slug = github_slugify(words)
            number = seen.get(slug, 0)
            seen[slug] = number + 1
            found.add(f"{slug}-{number}" if number else slug)
    return frozenset(found)


def broken(page: Path, root: Path = ROOT) -> Iterator[str]:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / path)) if path else page
        if path.startswith("/"):
            yield f"{link}: absolute, which is another place on each host"
        elif not target.is_relative_to(root) or not target.exists():
            yield f"{link}: no such file"
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_anchors_resolve(page: Path) -> None:
    assert list(broken(page)) == []


def test_pages_include_those_that_people_start_from() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs/index.md",
        "bench/README.md",
    } <= names
    assert "tools/cluster/README.md" in names


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c!\n\n# A b c\n\n[x](none.md) [y](#a-b-c) [z](#a-b-c-1) [a](/etc) [v](#a-b-c-2)\n"
    )
    assert [problem.partition(":")[2] for problem in broken(page, tmp_path)] == [
        " no such file",
        " absolute, which is another place on each host",
        " no such heading",
    ]
