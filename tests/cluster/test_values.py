"""The chart with each values file of its folder ci, installed and uninstalled on two real nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import chart
from cluster.cluster import Cluster
from cluster.machine import Kind

from ..waiting import until
from .test_install import Site, with_pods

LEFT_OUT = ("large", "closed")
"""Large needs three nodes. Closed cannot be uninstalled as it is: `test_nri_required.py`."""
VALUES = [
    path
    for path in sorted((chart.CHART / "ci").glob("*-values.yaml"))
    if path.stem.removesuffix("-values") not in LEFT_OUT
]
HERE = {
    "own-registry": (
        "--set=image.repository=pinwarden.local/pinwarden,image.digest=,"
        "image.pullPolicy=IfNotPresent"
    ),
}
"""What small nodes without that registry need in its place, by the name of the values file."""
MONITORING = "tests/cluster/monitoring-crds.yaml"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Cluster([Kind.UML] * 2) as running:
        yield with_pods(running)


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem.removesuffix("-values"))
def test_chart_installs_and_uninstalls_with_other_values(site: Site, values: Path) -> None:
    name = values.stem.removesuffix("-values")
    for node in site.nodes:
        site.kubectl("label", "--overwrite", "node", node.name, "pool=compute")
    if "monitor" in name:
        site.kubectl("apply", "-f", MONITORING)
        site.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", MONITORING)
    site.install("--values", str(values), *([HERE[name]] if name in HERE else []))
    if name != "one-team":
        until(site.enforced, "the limit is enforced")
    site.uninstall()
    until(lambda: site.left() == [], "nothing is left")
