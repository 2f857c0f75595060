"""What a run sent, and what it found."""

import logging
from collections import Counter
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Inputs by kind, those that were refused at the door, and findings: each a sentence, counted."""

    seed: int
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)

    @property
    def inputs(self) -> int:
        """How many inputs were taken."""
        return self.sent.total()

    def found(self, finding: str) -> None:
        """Something did not hold."""
        _log.error("found: %s", finding)
        self.findings[finding] += 1

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.inputs} inputs, {self.refused.total()} refused"]
        lines += [
            f"  {kind}: {count} (and {self.refused[kind]} refused)"
            for kind, count in sorted(self.sent.items())
        ]
        lines += [f"  FOUND {count} times: {text}" for text, count in self.findings.most_common()]
        return "\n".join(lines if self.findings else [*lines, "  found nothing"])
