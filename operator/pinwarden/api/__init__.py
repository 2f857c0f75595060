"""The custom resources: models, defaults, validation, and the CRDs generated from them (`pinwarden.io/v1alpha1`).

The models are the only source. `pinwarden crds` generates `crds/` from them, and a test fails if
the two differ.
"""
