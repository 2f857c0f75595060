"""SharedMemoryGroups on a real API server: rejected manifests, and the life of a group."""

import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..waiting import eventually
from .operators import PINWARDEN, Cluster, Operator

MIB = 1 << 20
ANNOTATION = "pinwarden.io/allow-shared-memory"
FINALIZER = "pinwarden.io/shared-memory"
Json = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with Operator(cluster, Path(tmp_path_factory.mktemp("operator"))) as process:
        yield process.ready()


class Case:
    """A namespace with a pod on a node that has an agent, and a group of it."""

    def __init__(self, cluster: Cluster, allow: str = "", **spec: Any) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace()
        if allow:
            self.allow(allow)
        self.node = cluster.node()
        self.agent = cluster.agent(self.node)
        self.pod = cluster.pod(self.namespace, self.node, {"app": "db"})
        self.uid = self.pod["metadata"]["uid"]
        self.group = cluster.group(self.namespace, **spec)
        self.name = self.group.rpartition("/")[2]

    def allow(self, text: str | None) -> None:
        patch = {"metadata": {"annotations": {ANNOTATION: text}}}
        self.cluster.merge(f"/api/v1/namespaces/{self.namespace}", patch)

    def asked(self, node: str = "") -> list[Json]:
        """What a node is asked to hold of groups."""
        found: list[Json] = self.cluster.config(node or self.node).get("spec", {}).get("groups", [])
        return found

    def on_node(self) -> Json:
        (group,) = eventually(self.asked, bool)
        return group

    def judged(self, condition: str, status: str, reason: str) -> str:
        """The message of the condition, once it is as expected."""
        eventually(
            lambda: self.cluster.condition(self.group, condition),
            lambda last: last == (status, reason),
        )
        conditions = self.cluster.find(self.group)["status"]["conditions"]
        return str(next(each["message"] for each in conditions if each["type"] == condition))

    def status(self) -> Json:
        found: Json = self.cluster.find(self.group).get("status", {})
        return found

    def delete(self) -> None:
        self.cluster.send("DELETE", self.group)

    def drains(self) -> None:
        eventually(
            lambda: [group["draining"] for group in self.asked()], lambda found: found == [True]
        )

    def gone(self) -> None:
        eventually(lambda: self.cluster.find(self.group), lambda found: not found)

    def end_pod(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.pod['metadata']['name']}"
        self.cluster.send("DELETE", f"{path}?gracePeriodSeconds=0")

    def events_of(self, reason: str) -> list[Json]:
        """The Events on the group with this reason."""
        listed = self.cluster.send(
            "GET", f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events"
        )
        return [
            item
            for item in listed["items"]
            if (item["regarding"]["name"], item["reason"]) == (self.name, reason)
        ]


# -- what the API server refuses --

MEMFD = {"memfd": {"name": "ring"}}
EVERY: list[Json] = [{"podSelector": {}}]


def smg(**fields: Any) -> Json:
    return {"backing": MEMFD, "members": EVERY, **fields}


def limited(amount: Any) -> list[Json]:
    return [{"podSelector": {}, "borrowLimit": amount}]


BAD: list[tuple[str, Json, str]] = [
    ("no backing", {"members": EVERY}, "spec.backing"),
    ("an empty backing", smg(backing={}), "spec.backing"),
    ("two backings", smg(backing={**MEMFD, "dmabuf": {"exporter": "udmabuf"}}), "spec.backing"),
    ("no members", {"backing": MEMFD}, "spec.members"),
    ("an empty list of members", smg(members=[]), "spec.members"),
    ("17 members", smg(members=EVERY * 17), "spec.members"),
    ("a path with ..", smg(backing={"tmpfs": {"path": "/run/../etc"}}), "spec.backing.tmpfs.path"),
    ("a path with .", smg(backing={"tmpfs": {"path": "/run/./a"}}), "spec.backing.tmpfs.path"),
    ("a relative path", smg(backing={"file": {"path": "run/a"}}), "spec.backing.file.path"),
    ("an empty part", smg(backing={"file": {"path": "/run//a"}}), "spec.backing.file.path"),
    (
        "a slash at the end",
        smg(backing={"hugetlbfs": {"path": "/dev/x/"}}),
        "spec.backing.hugetlbfs.path",
    ),
    (
        "a name with a slash",
        smg(backing={"posixShm": {"name": "../x"}}),
        "spec.backing.posixShm.name",
    ),
    ("IPC_PRIVATE", smg(backing={"sysvShm": {"key": 0}}), "spec.backing.sysvShm.key"),
    (
        "all segments of the node",
        smg(backing={"sysvShm": {"key": "*", "ipcNamespace": "Host"}}),
        "spec.backing.sysvShm.key",
    ),
    (
        "a created range of segments",
        smg(
            backing={"sysvShm": {"key": "1-2", "ipcNamespace": "Host"}},
            management="Create",
            capacity="1Mi",
        ),
        "spec.backing",
    ),
    ("an adopted tmpfs without a path", smg(backing={"tmpfs": {}}), "spec.backing"),
    ("a created memfd", smg(management="Create", capacity="1Mi"), "spec.management"),
    (
        "a created tmpfs without capacity",
        smg(backing={"tmpfs": {}}, management="Create"),
        "spec.management",
    ),
    (
        "a created tmpfs of nothing",
        smg(backing={"tmpfs": {}}, management="Create", capacity="0"),
        "spec.management",
    ),
    (
        "a created tmpfs with a path",
        smg(backing={"tmpfs": {"path": "/run/a"}}, management="Create", capacity="1Mi"),
        "spec.backing",
    ),
    (
        "a created segment of a pod",
        smg(backing={"sysvShm": {"key": 7}}, management="Create", capacity="1Mi"),
        "spec.backing",
    ),
    ("an owner of what others make", smg(owner={"user": 1}), "owner needs management"),
    ("a negative capacity", smg(capacity="-1Mi"), "spec.capacity"),
    ("a fraction of a byte", smg(capacity="1500m"), "spec.capacity"),
    ("a capacity above all", smg(capacity="5Pi"), "spec.capacity"),
    ("a borrowLimit without accounting", smg(members=limited("1Mi")), "spec.accounting"),
    (
        "a negative borrowLimit",
        smg(accounting="Borrow", members=limited(-1)),
        "spec.members[0].borrowLimit",
    ),
    ("a fair share without accounting", smg(fairShare="Borrow"), "spec.accounting"),
    ("an unknown policy", smg(deletionPolicy="Keep"), "spec.deletionPolicy"),
]


@pytest.mark.parametrize(
    ("spec", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_manifest_is_rejected_with_its_field(cluster: Cluster, spec: Json, field: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        cluster.send(
            "POST",
            f"{PINWARDEN}/namespaces/default/sharedmemorygroups?dryRun=All",
            {
                "apiVersion": "pinwarden.io/v1alpha1",
                "kind": "SharedMemoryGroup",
                "metadata": {"name": "bad"},
                "spec": spec,
            },
        )
    assert raised.value.code == 422
    assert field in raised.value.read().decode()


GOOD_KEYS: list[int | str] = [
    1,
    0x0052E2C1,
    2**32 - 1,
    "0x0052e2c1",
    "5432001",
    "0x5000-0x5fff",
    "1-0XffffFFFF",
    "*",
]
BAD_KEYS: list[Any] = [
    0,
    -1,
    2**32,
    "",
    "0",
    "0x0",
    "0x00000000",
    "x",
    "0x123456789",
    "1-",
    "-1",
    "1-2-3",
    "**",
    "1*",
    1.5,
    True,
]


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_key_is_a_number_a_hexadecimal_text_a_range_or_all(
    cluster: Cluster, key: int | str
) -> None:
    """See https://github.com/sclorg/postgresql-container/issues/97,
    https://github.com/ManageIQ/manageiq-pods/pull/974."""
    assert sent(cluster, smg(backing={"sysvShm": {"key": key}}))["backing"]["sysvShm"]["key"] == key


@pytest.mark.parametrize("key", BAD_KEYS)
def test_invalid_key_is_rejected_with_the_valid_forms(cluster: Cluster, key: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        sent(cluster, smg(backing={"sysvShm": {"key": key}}))
    message = raised.value.read().decode()
    assert raised.value.code == 422
    assert "spec.backing.sysvShm.key" in message
    if isinstance(key, str):
        assert "decimal or hexadecimal" in message


def sent(cluster: Cluster, spec: Json) -> Json:
    """The spec as the API server would store it."""
    body = {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "SharedMemoryGroup",
        "metadata": {"name": "keys"},
        "spec": spec,
    }
    path = f"{PINWARDEN}/namespaces/default/sharedmemorygroups?dryRun=All"
    answer: Json = cluster.send("POST", path, body)["spec"]
    return answer


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"backing": {"memfd": {"name": "other"}}}, "spec.backing"),
        ({"management": "Create", "capacity": "1Mi"}, "spec.management"),
    ],
    ids=["backing", "management"],
)
def test_object_of_a_group_cannot_be_changed(cluster: Cluster, patch: Json, field: str) -> None:
    group = cluster.group(cluster.namespace())
    with pytest.raises(urllib.error.HTTPError) as raised:
        cluster.merge(group, {"spec": patch})
    assert field in raised.value.read().decode()


# -- from birth to end --


def test_finalizer_is_there_before_a_node_is_asked(cluster: Cluster) -> None:
    case = Case(cluster)
    asked = case.on_node()
    metadata = cluster.find(case.group)["metadata"]
    assert metadata["finalizers"] == [FINALIZER]
    entries = {entry["manager"]: entry for entry in metadata["managedFields"]}
    fields = entries["pinwarden-operator-finalizer"]["fieldsV1"]
    assert fields.keys() == {"f:metadata"}
    assert fields["f:metadata"].keys() == {"f:finalizers"}
    assert (asked["name"], asked["draining"]) == (f"{case.namespace}/{case.name}", False)
    assert asked["members"][0]["pods"] == [case.uid]


@pytest.mark.rule("M2", "M3")
def test_reports_of_nodes_are_summed_up(cluster: Cluster) -> None:
    members = [{"podSelector": {"matchLabels": {"app": "db"}}, "borrowLimit": "1Mi"}]
    case = Case(cluster, accounting="Borrow", capacity="2Mi", members=members)
    case.on_node()
    case.judged("Applied", "False", "Pending")
    stranger = cluster.pod(case.namespace, case.node, {"app": "web"})["metadata"]
    mine = {"pod": case.uid, "member": True, "borrowed": 4096, "mapped": 8192, "level": "Converge"}
    cluster.report_groups(case.node, charge=12288, orphaned=8192, borrowers=[mine])
    case.judged("Applied", "True", "Acknowledged")
    case.judged("Enforced", "True", "Enforced")
    case.judged("WithinLimit", "True", "Sampled")
    status = case.status()
    sums = {
        key: status[key]
        for key in ("chargeBytes", "orphanedBytes", "borrowedBytes", "borrowerCount")
    }
    assert sums == {
        "chargeBytes": 12288,
        "orphanedBytes": 8192,
        "borrowedBytes": 4096,
        "borrowerCount": 1,
    }
    assert "deadCgroupBytes" not in status
    (borrower,) = status["borrowers"]
    assert (borrower["pod"], borrower["limitBytes"]) == (case.pod["metadata"]["name"], MIB)
    other = {"pod": stranger["uid"], "member": False, "borrowed": 4096, "mapped": 4096}
    cluster.report_groups(case.node, charge=12288, orphaned=8192, borrowers=[mine, other])
    said = case.judged("WithinLimit", "False", "NotMember")
    assert f"{case.namespace}/{stranger['name']}" in said
    header, row = cluster.kubectl("get", "smg", case.name, "-n", case.namespace).splitlines()
    shown = dict(zip(header.split(), row.split(), strict=False))
    assert (shown["CAPACITY"], shown["CHARGE"], shown["BORROWED"], shown["ORPHANED"]) == (
        "2Mi",
        "12Ki",
        "8Ki",
        "8Ki",
    )
    assert shown["PHASE"] == "Active"


@pytest.mark.rule("M1", "M9")
def test_name_in_any_script_reaches_the_node_and_the_status(cluster: Cluster) -> None:
    """An apply patch is YAML, which has no surrogate pairs for characters beyond U+FFFF."""
    case = Case(cluster, backing={"memfd": {"name": "🧷名\x80"}})
    assert case.on_node()["backing"] == {"memfd": {"name": "🧷名\x80"}}
    eventually(lambda: case.status().get("conditions"), bool)


def test_group_stays_on_a_node_while_something_of_it_is_left(cluster: Cluster) -> None:
    case = Case(cluster)
    case.on_node()
    cluster.report_groups(case.node, charge=4096)
    eventually(lambda: case.status().get("chargeBytes"), lambda charge: charge == 4096)
    case.end_pod()
    eventually(lambda: case.asked()[0]["members"][0]["pods"], lambda pods: pods == [])
    cluster.report_groups(case.node, charge=4096, orphaned=4096)
    eventually(lambda: case.status().get("orphanedBytes"), lambda orphaned: orphaned == 4096)
    cluster.report_groups(case.node, "Released")
    eventually(case.asked, lambda groups: groups == [])


@pytest.mark.rule("M10")
def test_deleted_group_waits_for_its_last_borrower_and_then_goes(cluster: Cluster) -> None:
    case = Case(cluster)
    case.on_node()
    borrower = {"pod": case.uid, "member": True, "borrowed": 4096, "mapped": 4096}
    cluster.report_groups(case.node, charge=4096, borrowers=[borrower])
    case.judged("Applied", "True", "Acknowledged")
    case.delete()
    case.drains()
    cluster.report_groups(case.node, "Draining", charge=4096, borrowers=[borrower], reason="InUse")
    said = case.judged("Drained", "False", "Draining")
    assert case.node in said
    assert case.pod["metadata"]["name"] in said
    case.judged("Ready", "False", "Draining")
    eventually(lambda: case.events_of("Draining"), bool)
    case.end_pod()
    eventually(lambda: case.asked()[0]["members"][0]["pods"], lambda pods: pods == [])
    assert cluster.find(case.group)["metadata"]["finalizers"] == [FINALIZER]
    cluster.report_groups(case.node, "Released")
    case.gone()
    eventually(case.asked, lambda groups: groups == [])


def test_group_that_no_node_has_goes_at_once(cluster: Cluster) -> None:
    group = cluster.group(cluster.namespace())
    eventually(lambda: cluster.find(group)["metadata"].get("finalizers"), bool)
    cluster.send("DELETE", group)
    eventually(lambda: cluster.find(group), lambda found: not found)


def test_orphaned_group_goes_at_once(cluster: Cluster) -> None:
    case = Case(cluster, deletionPolicy="Orphan")
    case.on_node()
    cluster.report_groups(case.node, charge=4096)
    case.judged("Applied", "True", "Acknowledged")
    assert "finalizers" not in cluster.find(case.group)["metadata"]
    case.delete()
    case.gone()
    eventually(case.asked, lambda groups: groups == [])


def test_policy_that_is_changed_while_it_drains_lets_it_go(cluster: Cluster) -> None:
    case = Case(cluster)
    case.on_node()
    cluster.report_groups(case.node)
    case.delete()
    case.drains()
    cluster.merge(case.group, {"spec": {"deletionPolicy": "Orphan"}})
    case.gone()


def test_node_that_goes_is_waited_for_no_longer(cluster: Cluster) -> None:
    case = Case(cluster)
    case.on_node()
    cluster.report_groups(case.node, charge=4096)
    case.delete()
    case.drains()
    case.judged("Drained", "False", "Draining")
    cluster.send("DELETE", f"/api/v1/nodes/{case.node}")
    case.gone()


@pytest.mark.rule("M3", "H2")
def test_removed_node_takes_its_report_of_an_active_group_along(cluster: Cluster) -> None:
    case = Case(cluster, accounting="Borrow")
    case.on_node()
    borrower = {"pod": case.uid, "member": True, "borrowed": 4096, "mapped": 4096}
    cluster.report_groups(case.node, charge=4096, borrowers=[borrower])
    eventually(lambda: case.status().get("borrowedBytes"), lambda borrowed: borrowed == 4096)
    cluster.send("DELETE", f"/api/v1/nodes/{case.node}")
    case.end_pod()
    reported = {"phase", "chargeBytes", "borrowedBytes", "borrowers", "borrowerCount"}
    eventually(lambda: {key for key in reported if case.status().get(key)}, lambda left: not left)
    eventually(
        lambda: {each["reason"] for each in case.status()["conditions"]},
        lambda reasons: reasons == {"Accepted", "NoLimits", "NoPods"},
    )


def test_manually_removed_finalizer_lets_a_draining_group_vanish(cluster: Cluster) -> None:
    case = Case(cluster)
    case.on_node()
    cluster.report_groups(case.node)
    case.delete()
    case.drains()
    cluster.merge(case.group, {"metadata": {"finalizers": None}})
    case.gone()
    eventually(case.asked, lambda groups: groups == [])


def test_manually_removed_finalizer_of_a_living_group_is_restored(cluster: Cluster) -> None:
    case = Case(cluster)
    case.on_node()
    before = cluster.config(case.node)["metadata"]["generation"]
    cluster.merge(case.group, {"metadata": {"finalizers": None}})
    eventually(lambda: cluster.find(case.group)["metadata"].get("finalizers"), bool)
    assert cluster.config(case.node)["metadata"]["generation"] == before


def test_groups_of_a_namespace_that_is_deleted_go_with_their_pods(cluster: Cluster) -> None:
    """The test deletes the content of the namespace in place of the missing controller."""
    case = Case(cluster)
    case.on_node()
    cluster.report_groups(case.node, charge=4096)
    cluster.send("DELETE", f"/api/v1/namespaces/{case.namespace}")
    case.delete()
    case.end_pod()
    case.drains()
    case.judged("Drained", "False", "Draining")
    eventually(lambda: case.asked()[0]["members"][0]["pods"], lambda pods: pods == [])
    cluster.report_groups(case.node, "Released")
    case.gone()


# -- what is allowed --


@pytest.mark.rule("M8")
def test_allowances_of_an_administrator_change_live(cluster: Cluster) -> None:
    case = Case(cluster, backing={"tmpfs": {"path": "/run/team-a/ring"}})
    said = case.judged("Accepted", "False", "NotAllowed")
    assert "spec.backing.tmpfs.path" in said
    assert "'path:/run/team-a/ring'" in said
    assert ANNOTATION in said
    assert case.asked() == []
    assert "finalizers" not in cluster.find(case.group)["metadata"]
    case.allow("path:/run/team-a")
    case.judged("Accepted", "True", "Accepted")
    assert case.on_node()["allowed"] == "/run/team-a"
    case.allow("path:/run/team-ab path:run")
    said = case.judged("Accepted", "False", "NotAllowed")
    assert "'path:run' is invalid" in said
    case.drains()
    assert "allowed" not in case.on_node()
    assert cluster.find(case.group)["metadata"]["finalizers"] == [FINALIZER]
    cluster.report_groups(case.node, "Draining", reason="NotAllowed")
    eventually(case.asked, lambda groups: groups == [])
    eventually(
        lambda: "finalizers" in cluster.find(case.group)["metadata"], lambda there: not there
    )


def test_created_objects_must_fit_an_allowance(cluster: Cluster) -> None:
    spec: Json = {"backing": {"tmpfs": {}}, "management": "Create", "capacity": "2Mi"}
    case = Case(cluster, "create:3Mi", **spec)
    assert case.on_node()["capacity"] == 2 * MIB
    time.sleep(1)  # the API server has ages in whole seconds
    second = cluster.group(case.namespace, **spec)
    eventually(
        lambda: cluster.condition(second, "Accepted"), lambda last: last == ("False", "NotAllowed")
    )
    case.allow("create:4Mi")
    eventually(
        lambda: cluster.condition(second, "Accepted"), lambda last: last == ("True", "Accepted")
    )
    eventually(lambda: len(case.asked()), lambda count: count == 2)


@pytest.mark.rule("M10")
def test_object_above_a_lowered_allowance_goes_with_its_last_borrower(
    cluster: Cluster,
) -> None:
    spec: Json = {"backing": {"tmpfs": {}}, "management": "Create", "capacity": "2Mi"}
    case = Case(cluster, "create:2Mi", **spec)
    case.on_node()
    cluster.report_groups(case.node, charge=4096)
    case.judged("Applied", "True", "Acknowledged")
    case.allow("create:1Mi")
    case.judged("Accepted", "False", "NotAllowed")
    case.drains()
    case.delete()
    cluster.report_groups(case.node, "Draining", charge=4096, reason="InUse")
    assert case.node in case.judged("Drained", "False", "Draining")
    assert cluster.condition(case.group, "Accepted") == ("False", "NotAllowed")
    assert cluster.find(case.group)["metadata"]["finalizers"] == [FINALIZER]
    cluster.report_groups(case.node, "Released")
    case.gone()
    eventually(case.asked, lambda groups: groups == [])


def test_pin_limit_is_not_supported_yet(cluster: Cluster) -> None:
    case = Case(cluster, members=[{"podSelector": {}, "pinLimit": "1Mi"}])
    said = case.judged("Accepted", "False", "NotSupported")
    assert "spec.members[0].pinLimit" in said
    assert case.asked() == []


def test_groups_are_counted_by_condition(cluster: Cluster, operator: Operator) -> None:
    case = Case(cluster)
    case.judged("Accepted", "True", "Accepted")
    eventually(
        lambda: operator.metric('pinwarden_operator_groups{condition="Accepted",status="True"}'),
        lambda count: count >= 1,
    )
