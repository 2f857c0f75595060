"""How Sphinx builds the site: `make site`. What is special about it is in tools/docs/site.py."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "operator")]

from pinwarden import __version__  # noqa: E402 - found by the path above

project = "pinwarden"
version = release = __version__
extensions = ["myst_parser", "docs.site"]
html_theme = "furo"
html_title = f"pinwarden {__version__}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
myst_heading_anchors = 4
myst_heading_slug_func = "github"
# Where links to files outside of docs/ lead, such as https://git.example/pinwarden/blob/main; the checkout itself without it.
pinwarden_repository = os.environ.get("PINWARDEN_REPOSITORY", "")
