"""The settings of Sphinx for `make site`; tools/docs/site.py is its extension."""

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
# The base of links to files outside docs/, such as https://git.example/pinwarden/blob/main;
# without it, links lead to the checkout.
pinwarden_repository = os.environ.get("PINWARDEN_REPOSITORY", "")
