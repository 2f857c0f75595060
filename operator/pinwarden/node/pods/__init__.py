"""The pods of this node: their cgroups, their processes, and the limits on them.

`cgroups` and `discovery` find pods; `policy` says which limits a configuration sets; `process` and
`privileges` describe a process; `subject` is a limited pod with its processes; `constraints` says
which processes a limit covers, and `batches` which subjects must be decided together.
"""
