"""The holder, `pinwarden holder`: keeps the listener descriptors of the container runtime.

It does nothing else, so nothing else can make it end. Rules: docs/semantics.md.
"""
