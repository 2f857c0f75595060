"""What the operator sends is what the API server reads."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.controller.client import as_yaml

texts = st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
"""YAML takes a key without a mark of up to 1,024 characters; those of Kubernetes are shorter."""


@given(body=st.dictionaries(keys, texts | st.integers() | st.lists(texts)))
def test_an_apply_patch_is_read_as_it_was_meant(body: dict[str, object]) -> None:
    assert as_yaml(body).isascii()
    assert yaml.safe_load(as_yaml(body)) == body


def test_a_character_beyond_the_basic_plane_is_no_pair_of_surrogates() -> None:
    assert as_yaml({"name": "🧷"}) == r'{"name": "\U0001f9f7"}'
