"""The kinds of machine by name."""

from collections.abc import Mapping

from cluster import debian
from cluster.machine import Cgroups, Kind, Machine
from cluster.qemu import Qemu
from cluster.uml import Uml

MACHINES: Mapping[Kind, Machine] = {
    Kind.UML: Uml(),
    Kind.QEMU: Qemu(),
    Kind.QEMU_V1: Qemu(debian.RELEASE, Cgroups.V1),
}
