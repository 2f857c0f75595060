"""Unexpected input: no process may end, no limit may be lost, and each bad input must be named.

| module | content |
| --- | --- |
| `text` | names: bytes and characters that programs, users and objects may choose |
| `schemas` | values within an OpenAPI schema of a CRD, mostly at its edges |
| `damage` | files that are torn, empty, or of other types or versions |
| `tally` | counts of inputs and findings |
| `node` | inputs for the processes of a node in batches; `hostile` is the program in a pod |
| `checked_node` | agent, gate, accountant and holder as real processes, and their check |
| `server` | objects for the operator, a real process on a real API server |

Mutators are functions of a `random.Random`, so a seed repeats a run, except for races of processes.
hypothesis-jsonschema does not fit: the processes live on, so a run cannot shrink, and the library
does not know the structural schemas of Kubernetes.
"""
