"""The site builds without a warning, has every page, and links to files of the repository."""

import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest

from docs import site as extension

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
BASE = "https://git.example/pinwarden/blob/main"
FLAGS = next(
    line.removeprefix("SITE := ").split()
    for line in (ROOT / "Makefile").read_text().splitlines()
    if line.startswith("SITE := ")
)


def build(source: Path, out: Path, repository: str = "") -> CompletedProcess[str]:
    """Run the command of `make site`."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *FLAGS,
        "-d",
        str(out / "doctrees"),
        str(source),
        str(out / "site"),
    ]
    environment = {**os.environ, "PINWARDEN_REPOSITORY": repository}
    return run(command, capture_output=True, text=True, check=False, env=environment)


class Links(HTMLParser):
    """The targets of a page's links."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "href" and value and tag == "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder, BASE)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "site"


def test_every_page_is_in_the_table_of_contents(site: Path) -> None:
    index = Links(site / "index.html").found
    pages = {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")}
    assert pages - {"index.html"} <= set(index)


def test_links_to_other_files_lead_to_the_repository(site: Path) -> None:
    outward = [
        target
        for page in site.rglob("*.html")
        for target in Links(page).found
        if target.startswith(("http", "../../"))
    ]
    paths = {
        target.removeprefix(BASE + "/").partition("#")[0]
        for target in outward
        if target.startswith(BASE)
    }
    assert "bench/README.md" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]
    assert not [target for target in outward if target.startswith("../../../")]


def written(folder: Path, pages: dict[str, str]) -> Path:
    """Write pages with the settings of the real documentation, and return their folder."""
    source = folder / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("*.md"))
    conf = source / "conf.py"
    conf.write_text(
        conf.read_text().replace("Path(__file__).resolve().parents[1]", f"Path({str(ROOT)!r})")
    )
    for name, text in pages.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    return source


def test_links_without_a_repository_lead_to_the_checkout(tmp_path: Path) -> None:
    """Two pages are enough: the path to the checkout depends on the depth of a page alone."""
    out = ROOT / "build" / f"site-of-test-{tmp_path.name}-{os.getpid()}"
    readme = "../../../bench/README.md"
    pages = {
        "index.md": f"# A\n\n## One\n\n- [b](how-to/b.md)\n\n[c]({readme})\n",
        "how-to/b.md": f"# B\n\n[c](../{readme}#see)\n",
    }
    try:
        done = build(written(out, pages), out)
        assert (done.returncode, done.stderr) == (0, "")
        for name in pages:
            page = (out / "site" / name).with_suffix(".html")
            (target,) = (link for link in Links(page).found if re.match(r"\.\./(\.\./)+", link))
            assert (
                page.parent / target.partition("#")[0]
            ).resolve() == ROOT / "bench" / "README.md"
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_a_link_to_nothing_ends_the_build(tmp_path: Path) -> None:
    done = build(written(tmp_path, {"index.md": "# A\n\n[x](../none.yaml)\n"}), tmp_path)
    assert done.returncode != 0
    assert "../none.yaml is not in the repository" in done.stderr


def test_headings_with_pages_are_the_contents() -> None:
    index = (
        "# A\n\n## One\n\n- [b](b.md): c\n- [d](how-to/d.md#e) [f](../f.md)\n\n## None\n\ntext\n"
    )
    assert extension.contents(index) == ("\n```{toctree}\n:hidden:\n:caption: One\n\nb\n```")
