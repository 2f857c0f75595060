"""`make demo`: pinwarden on a real cluster, claim by claim, with real pods that lock memory.

`shell` runs commands as a user would and shows them with their answers. `claims` and `shared` have
the claims. `__main__` starts the project's own cluster, or uses the cluster of KUBECONFIG.
"""
