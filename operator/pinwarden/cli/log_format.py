"""Logs of the long-running subcommands on stderr: plain lines, or one JSON object per line."""

import argparse
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

Format = Literal["text", "json"]


def add_option(parser: argparse.ArgumentParser) -> None:
    """Declare --log-format."""
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="default: text"
    )


def configure(log_format: Format) -> None:
    """Send the log of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z WARNING pinwarden.node.agent.config_watcher: ...`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(  # noqa: N802
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """Return the time as RFC 3339 in UTC."""
        return _time(record)


class JsonFormatter(logging.Formatter):
    """One object with `time`, `level`, `logger`, `message`, and the `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
