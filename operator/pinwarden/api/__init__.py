"""The custom resources: models, defaults, validation, and the CRDs generated from them (`pinwarden.io/v1alpha1`).

The models are the only source: `crds/` is written from them by `pinwarden crds`, and a test fails when the two differ.
"""
