"""The API server reads an apply patch as the operator wrote it."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.controller.client import as_yaml

texts = st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
"""YAML takes an implicit key of up to 1,024 characters; keys of Kubernetes are shorter."""


@given(body=st.dictionaries(keys, texts | st.integers() | st.lists(texts)))
def test_as_yaml_any_body_parses_to_the_same_body(body: dict[str, object]) -> None:
    assert as_yaml(body).isascii()
    assert yaml.safe_load(as_yaml(body)) == body


def test_as_yaml_character_beyond_the_basic_plane_is_one_escape() -> None:
    assert as_yaml({"name": "🧷"}) == r'{"name": "\U0001f9f7"}'
