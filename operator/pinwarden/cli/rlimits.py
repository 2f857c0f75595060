"""The limit of open files of a program on a node."""

import logging
import resource

_log = logging.getLogger(__name__)


def allow_all() -> None:
    """Raise the soft limit of open files to the hard limit.

    A program here keeps a descriptor for each process or listener and calls `poll`. Container
    runtimes set a soft limit of 1024, for programs that call `select`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        _log.warning("cannot raise the limit of open files: %s", error)
