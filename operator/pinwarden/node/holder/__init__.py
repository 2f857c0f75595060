"""The holder, `pinwarden holder`: keeps the listener descriptors of the container runtime.

Nothing else runs in this process, so nothing else can end the process. Rules: docs/semantics.md.
"""
