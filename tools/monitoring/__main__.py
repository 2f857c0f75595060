"""Generate docs/metrics.md, docs/alerts.md, docs/dashboards.md, the rules and the dashboards."""

from monitoring import generated

for path, text in generated.files().items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
