"""The pods of this node: their cgroups, their processes, and the limits on them.

`cgroups` and `discovery` find pods. `policy` reads the limits of a configuration. `process` and
`privileges` describe a process, and `subject` is a limited pod with its processes. `constraints`
maps limits to processes, and `batches` groups the subjects that must be decided together.
"""
