"""The four dashboards. Only the node's dashboard needs the agents' metrics.

The others use metrics of the cluster, which the leading replica of the operator exposes.
"""

from typing import Final

from monitoring.boards.cluster import CLUSTER
from monitoring.boards.namespace import NAMESPACE
from monitoring.boards.node import NODE
from monitoring.boards.shared import SHARED

BOARDS: Final = (CLUSTER, NODE, NAMESPACE, SHARED)
