"""The folders of a node that several subcommands use, each declared once."""

import argparse
from pathlib import Path

STATE_DIR = Path("/var/lib/pinwarden")
RUN_DIR = Path("/run/pinwarden")
_FOLDERS = {
    "--cgroup-root": (Path("/sys/fs/cgroup"), "mount point of the cgroup hierarchies"),
    "--proc-root": (Path("/proc"), "proc of the node's initial PID namespace"),
    "--state-dir": (STATE_DIR, "files of the agent that survive a restart of the node"),
    "--run-dir": (RUN_DIR, "files of the gate and the accountant, in a tmpfs of the node"),
}


def add_options(parser: argparse.ArgumentParser, *options: str) -> None:
    """Declare the options of these folders."""
    for option in options:
        default, meaning = _FOLDERS[option]
        parser.add_argument(
            option,
            type=Path,
            default=default,
            metavar="DIR",
            help=f"{meaning} (default: {default})",
        )
