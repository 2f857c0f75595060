"""Random examples take as long as they take: a slow machine fails no test. Where nobody waits for the answer there are more of them."""

import os

from hypothesis import settings

settings.register_profile("pinwarden", deadline=None, max_examples=100 if "CI" in os.environ else 40)
settings.load_profile("pinwarden")
