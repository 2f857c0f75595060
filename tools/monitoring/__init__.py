"""Metrics catalogue, dashboards, alerts and runbooks; `python -m monitoring` generates them.

`catalogue` reads the programs' real registries. `grafana` builds the JSON of the dashboards in
`boards`, and `rules` the rules file of the `alerts`. `pictures` draws a dashboard from the answers
of a `prometheus`.
"""
