"""The kinds of machine by name."""

from collections.abc import Mapping

from cluster.machine import Kind, Machine
from cluster.qemu import Qemu
from cluster.uml import Uml

MACHINES: Mapping[Kind, Machine] = {Kind.UML: Uml(), Kind.QEMU: Qemu()}
