"""Metrics catalogue, dashboards, alerts and runbooks, all written by code; `python -m monitoring` writes them anew.

From the bottom up: `catalogue` reads the programs' real registries; `grafana` builds the JSON of a dashboard, and `boards` has the four;
`rules` builds alerts, `alerts` has them with their runbooks; `pictures` draws what a Prometheus answered for a dashboard's panels, and
`prometheus` runs one.
"""
