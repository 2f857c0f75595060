"""Write the generated pages of `docs/`, check the words of the project, and build the site.

Each module is a command: `python tools/docs/NAME.py`.

- `semantics`: `docs/semantics.md`, from the marks of the tests.
- `reference`: `docs/reference/`, from the models of the custom resources.
- `chart`: the chart's README, and the plain manifests.
- `site`: the Sphinx extension of `make site`.
- `words`: how often docstrings use hard words, and sentences that are too long.
"""
