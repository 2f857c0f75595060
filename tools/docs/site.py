"""The Sphinx extension of the documentation's site.

The same Markdown reads well on a Git host and builds without a warning. Two things differ:

- A Git host shows a list of links, and a site needs a table of contents. `docs/index.md` has the
  list alone. `contents` makes a toctree of each heading with links to pages.
- A link to a file outside `docs/` means a file of the repository. The link becomes
  `pinwarden_repository` and the path; without that setting, a path to the checkout. A missing file
  is a warning, which ends `make site`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

ROOT: Final = Path(__file__).resolve().parents[2]
_log = logging.getLogger(__name__)
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\]\(([^)#:]+)\.md\)")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the extension with Sphinx."""
    app.add_config_value("pinwarden_repository", "", "env", str)
    app.connect("source-read", _read)
    app.add_transform(Outward)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def contents(index: str) -> str:
    """Return the toctrees of an index: for each heading of the second level, its pages in order."""
    return "\n".join(_toctrees(index))


def _toctrees(index: str) -> Iterator[str]:
    _, *rest = _HEADING.split(index)
    for caption, section in zip(rest[::2], rest[1::2], strict=True):
        pages = [page for page in _PAGE.findall(section) if not page.startswith("../")]
        if pages:
            yield "\n".join(
                ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]
            )


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if page == app.config.root_doc:
        source[0] += contents(source[0])


class Outward(SphinxTransform):
    """Point links that leave `docs/` at the repository."""

    default_priority = 5

    def apply(self) -> None:
        """Replace the references that the Markdown parser made of such links."""
        for node in list(self.document.findall(nodes.Element)):
            if (
                isinstance(node, (addnodes.download_reference, addnodes.pending_xref))
                and "reftarget" in node
            ):
                self._turn(node)

    def _turn(self, node: nodes.Element) -> None:
        path, _, anchor = str(node["reftarget"]).partition("#")
        # The parser takes each Markdown file for a page, and names it without the suffix.
        if node.get("refdomain") == "doc":
            path, anchor = f"{path}.md", node.get("reftargetid") or ""
        folder = Path(self.env.srcdir, self.env.docname).parent
        target = Path(os.path.normpath(folder / path))
        if target.is_relative_to(self.env.srcdir):
            return
        if not target.is_relative_to(ROOT) or not target.exists():
            _log.warning("%s is not in the repository", path, location=node, type="docs")
            return
        base = self.config.pinwarden_repository.rstrip("/") or self._checkout()
        address = f"{base}/{target.relative_to(ROOT).as_posix()}" + (f"#{anchor}" if anchor else "")
        node.replace_self(nodes.reference("", "", *node.children, refuri=address, internal=False))

    def _checkout(self) -> str:
        """Return the path from the page on the site to the checkout."""
        page = Path(self.app.outdir, self.env.docname)
        return Path(os.path.relpath(ROOT, page.parent)).as_posix()
