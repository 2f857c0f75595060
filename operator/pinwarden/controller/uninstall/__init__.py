"""`pinwarden uninstall`.

`lease` takes the operator's Lease. `blockers` finds gated pods and created memory.
"""
