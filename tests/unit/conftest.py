"""Random examples take as long as they take: a slow machine fails no test."""

from hypothesis import settings

settings.register_profile("pinwarden", deadline=None)
settings.load_profile("pinwarden")
