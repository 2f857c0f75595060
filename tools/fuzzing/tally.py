"""Counts of a run: inputs and findings."""

import logging
from collections import Counter
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Counts of inputs by kind, of rejected inputs, and of findings, which are sentences."""

    seed: int
    sent: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)

    @property
    def inputs(self) -> int:
        """Return the number of accepted inputs."""
        return self.sent.total()

    def found(self, finding: str) -> None:
        """Count a failed condition."""
        _log.error("found: %s", finding)
        self.findings[finding] += 1

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.inputs} inputs, {self.rejected.total()} rejected"]
        lines += [
            f"  {kind}: {count} (and {self.rejected[kind]} rejected)"
            for kind, count in sorted(self.sent.items())
        ]
        lines += [f"  FOUND {count} times: {text}" for text, count in self.findings.most_common()]
        return "\n".join(lines if self.findings else [*lines, "  found nothing"])
