"""How many descriptors a program on a node may have open."""

import logging
import resource

_log = logging.getLogger(__name__)


def allow_all() -> None:
    """Raises the soft limit to the hard one. A program here keeps a descriptor for each process or listener, and waits for them by poll;
    container runtimes set a soft limit of 1024 for programs that call select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        _log.warning("the limit of open files stays as it is: %s", error)
