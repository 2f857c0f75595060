"""The custom resources (`pinwarden.io/v1alpha1`): models, validation and generated CRDs.

The models are the only source. `pinwarden crds` generates `crds/` from them, and a test fails if
the two differ.
"""
