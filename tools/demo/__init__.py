"""`make demo`: pinwarden on a real cluster, claim by claim, with real pods that really lock memory.

`shell` runs the commands that a user would type and shows them with their answers; `claims` says what is claimed and how it is seen;
`__main__` brings up the project's own cluster, or uses that of KUBECONFIG.
"""
