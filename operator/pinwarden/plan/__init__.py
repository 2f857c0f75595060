"""The rules, as pure functions over values: no clock, no network, no files.

- `selectors`: which objects a label selector selects.
- `world`: the few fields of pods, nodes and namespaces that the rules read.
- `compile`: limits and pods in, the spec of one node's NodePinConfig out.
- `allowed`: what an administrator lets groups of shared memory name; `groups`: groups and pods in, what a node holds of them out;
  `fitting`: who finds room.
- `imply`: which limit says nothing new beside another one.
- `index`: all of the cluster, indexed so that an event costs what it touches; `match` and `attach` are its parts.
- `report`: what a node was asked, took and reported; `summarize`: one limit on one node; `conditions`, `recommend`: what follows;
  `aggregate`: the status of one limit from all of it. `group_share`, `group_conditions`, `group_status`: the same for a group.
  `verdicts`: what conditions are made of. `refusals`: which refused calls are news, and how one reads.
- `objects`: from what the API server writes to `world`. For people who look: `figures` (what all nodes report), `workloads` (a limit for
  each), `explain` (why a pod is held as it is, and what to do next); `amounts`: bytes in words.
"""
