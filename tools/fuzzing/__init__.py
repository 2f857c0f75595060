"""Input that nobody foresaw, and what must hold all the same: no process ends, no limit is lost, nothing bad goes unnamed.

| module | what it holds |
| --- | --- |
| `text` | names: bytes and characters as programs, users and objects may choose them |
| `schemas` | values within an OpenAPI schema of a CRD, mostly at its edges |
| `damage` | files that are torn, empty, of other types or versions |
| `tally` | what was sent, what was found |
| `node` | agent, gate, accountant and holder as real processes, fed in batches; `hostile` is the program in the pod |
| `server` | the operator as a real process on a real API server, fed with objects that the server accepts |

Mutators are functions of a `random.Random`, so that a seed makes a run again, up to what processes do at the same time. They are written
here and not taken from hypothesis-jsonschema: a run sends what it made to processes that live on, so there is nothing to shrink, and the
schemas are the structural ones of Kubernetes, which that library does not know.
"""
