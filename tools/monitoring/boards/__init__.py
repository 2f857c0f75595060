"""The four dashboards. All but that of a node work from the operator's metrics alone, which only the replica that leads tells."""

from typing import Final

from monitoring.boards.cluster import CLUSTER
from monitoring.boards.namespace import NAMESPACE
from monitoring.boards.node import NODE
from monitoring.boards.shared import SHARED

BOARDS: Final = (CLUSTER, NODE, NAMESPACE, SHARED)
