"""The gated system calls, and seccomp policies with the gate's listener. Standard library only.

`patterns` has the algebra of argument conditions, `gated_calls` which calls are gated, `policy` the
merge of the gate's rules into a container's own policy, and `profiles` the files for the kubelet.
Rules: docs/semantics.md.
"""
