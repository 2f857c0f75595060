"""What a cluster is made of, as the steps of a plan."""

from collections.abc import Iterable
from functools import partial

from cluster import bpf, debian
from cluster.build import libseccomp, programs
from cluster.image import ROOT, base_system, image, image_tools, pause_image, wheels
from cluster.machine import Kind
from cluster.machines import MACHINES
from cluster.nodedisk import image_disk, system_disk
from cluster.plan import Step, carry_out

CLUSTER = "cluster commands"
RUNC = "runc"
PROGRAMS = (
    Step("libseccomp", libseccomp, 5),
    Step(CLUSTER, partial(programs, "cluster"), 750),
    Step(RUNC, partial(programs, "runc"), 40, ["libseccomp"]),
)
LIBBPF = Step("libbpf", bpf.libbpf, 5)
CHART = Step("chart tools", partial(programs, "chart"), 50)
IMAGES = (
    Step("busybox", debian.busybox, 2),
    Step("image tools", image_tools, 10),
    Step("wheels", partial(wheels, ROOT), 5),
    Step("base system", base_system, 20, ["image tools"]),
    Step("BPF programs", bpf.objects, 15),
    Step("image", image, 25, ["base system", "wheels", "BPF programs"]),
    Step("pause image", pause_image, 2, ["image tools", "busybox"]),
)


def _disks(kinds: Iterable[Kind]) -> list[Step]:
    steps = []
    for kind in kinds:
        kernel = Step(f"{kind} kernel", MACHINES[kind].pieces, 10)
        needs = [kernel.name, "busybox", CLUSTER, RUNC]
        steps += [kernel, Step(f"{kind} node disk", partial(system_disk, kind), 5, needs)]
    return [*steps, Step("image disk", image_disk, 10, [CLUSTER, "image", "pause image"])]


def build_cluster(kinds: Iterable[Kind]) -> None:
    """Build what a cluster with these kinds of node needs and the cache lacks. Raises ClusterError
    when a piece cannot be built.
    """
    carry_out([*PROGRAMS, *IMAGES, *_disks(sorted(set(kinds)))])


def build_everything() -> None:
    """Build what the tests need besides, too."""
    carry_out([*PROGRAMS, *IMAGES, *_disks(Kind), CHART, LIBBPF])
