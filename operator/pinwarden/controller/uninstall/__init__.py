"""`pinwarden uninstall`; `lease`: the operator's Lease in its hands; `blockers`: what is in its way."""
