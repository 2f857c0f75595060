"""A real Prometheus on loopback, and promtool: Debian's, unpacked into the cache, never installed.

It scrapes and evaluates every second, so tests are fast. It reads the targets from a file that may
change at any time.
"""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.debian import programs
from cluster.process import Child
from monitoring.rules import to_yaml

HOST = "127.0.0.1"
INTERVAL_SECONDS = 1.0
READY_SECONDS = 30.0
_PACKAGES = ("prometheus",)


class PrometheusError(Exception):
    """Prometheus or promtool rejected a query or a file."""


@dataclass(frozen=True)
class Target:
    """A process to scrape: its job, `host:port`, and labels of discovery (`__meta_...`)."""

    job: str
    address: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Series:
    """A series of an answer: labels, and values by Unix time."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


def promtool(*arguments: str) -> str:
    """Run promtool and return its output.

    Raises:
        PrometheusError: it failed; the error has the output.
    """
    command = [str(_binary("promtool")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PrometheusError(f"{done.stdout}{done.stderr}".strip())
    return done.stdout


class Prometheus:
    """A server for a `with` block in an empty `folder`; `jobs` has the relabelings of each job."""

    def __init__(
        self,
        folder: Path,
        rules: Mapping[str, Any],
        jobs: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        self._targets = {job: folder / f"{job}.json" for job in jobs}
        self.scrape([])
        (folder / "rules.yaml").write_text(to_yaml(dict(rules)))
        configuration = folder / "prometheus.yaml"
        every = f"{round(INTERVAL_SECONDS * 1000)}ms"
        scraped = [
            {
                "job_name": job,
                "file_sd_configs": [{"files": [str(self._targets[job])], "refresh_interval": "1s"}],
                "relabel_configs": [dict(each) for each in relabelings],
            }
            for job, relabelings in jobs.items()
        ]
        configuration.write_text(
            to_yaml(
                {
                    "global": {
                        "scrape_interval": every,
                        "scrape_timeout": every,
                        "evaluation_interval": every,
                    },
                    "rule_files": [str(folder / "rules.yaml")],
                    "scrape_configs": scraped,
                }
            )
        )
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        self.url = f"http://{HOST}:{port}"
        argv = [
            str(_binary("prometheus")),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
            "--log.level=warn",
        ]
        self._child = Child("prometheus", argv, folder / "prometheus.log")

    def __enter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            PrometheusError: it does not answer; the error has the end of the log.
        """
        self._child.start()
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                    return self
            except OSError as error:
                if time.monotonic() > end or not self._child.running:
                    self._child.stop()
                    raise PrometheusError(self._child.tail()) from error
            time.sleep(0.1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server."""
        self._child.stop()

    def scrape(self, targets: Iterable[Target]) -> None:
        """Scrape these targets only from now on."""
        known = list(targets)
        for job, path in self._targets.items():
            content = [
                {"targets": [each.address], "labels": dict(each.labels)}
                for each in known
                if each.job == job
            ]
            draft = path.with_suffix(".new")
            draft.write_text(json.dumps(content))
            draft.replace(path)

    def query(self, expr: str) -> list[Series]:
        """Return the present answer to a query.

        Raises:
            PrometheusError: the query is invalid.
        """
        found = self._ask("query", query=expr)
        return [
            Series(each["metric"], (_point(each["value"]),)) for each in found["data"]["result"]
        ]

    def course(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Return the answer over a time; `start` and `end` are Unix times.

        Raises:
            PrometheusError: the query is invalid.
        """
        found = self._ask("query_range", query=expr, start=start, end=end, step=step)
        return [
            Series(each["metric"], tuple(map(_point, each["values"])))
            for each in found["data"]["result"]
        ]

    def firing(self, within: float = 0.0) -> set[str]:
        """Return the names of alerts that fire now, or fired in the last `within` seconds."""
        firing = 'ALERTS{alertstate="firing"}'
        found = self.query(
            f"last_over_time({firing}[{round(within * 1000)}ms])" if within else firing
        )
        return {each.labels["alertname"] for each in found}

    def texts(self) -> dict[str, list[str]]:
        """Return the annotations of pending and firing alerts by name."""
        texts: dict[str, list[str]] = {}
        for alert in self._ask("alerts")["data"]["alerts"]:
            texts.setdefault(alert["labels"]["alertname"], []).extend(alert["annotations"].values())
        return texts

    def _ask(self, endpoint: str, **parameters: object) -> dict[str, Any]:
        data = urllib.parse.urlencode(parameters).encode() or None
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{endpoint}", data, timeout=30
            ) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{parameters}: {error.read().decode()}") from error
        return answer


def _point(value: tuple[float, str]) -> tuple[float, float]:
    return float(value[0]), float(value[1])


def _binary(name: str) -> Path:
    return programs("prometheus", _PACKAGES) / "usr" / "bin" / name
