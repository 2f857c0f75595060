"""Groups from events to writes: the finalizer is set first and removed last."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.controller import resources, transform
from pinwarden.controller.finalizers import LEFT_SECONDS
from pinwarden.controller.metrics_collector import ClusterCollector
from pinwarden.controller.status_reconciler import SPARED_BY_BORROWERS, SPARED_BY_FIGURES
from pinwarden.plan.group_compiler import FINALIZER
from pinwarden.plan.types import Namespace

from .test_reconcile import Operator, _quick, config_path, scenario, use_up

__all__ = ["_quick"]
GROUP = "/apis/pinwarden.io/v1alpha1/namespaces/ns/sharedmemorygroups/g"
Json = dict[str, Any]


class Case:
    """A group of namespace ns on the API server, beside an operator."""

    def __init__(self, operator: Operator, **spec: Any) -> None:
        self.operator = operator
        self.finalizers: list[str] = []
        self.deleting = False
        self.generation = 1
        self.spec = {
            "backing": {"memfd": {"name": "ring"}},
            "members": [{"podSelector": {}}],
            **spec,
        }
        original = operator.server.apply

        async def apply(path: str, body: Json, manager: str = "") -> Json:
            answer = await original(path, body, manager)
            if path != GROUP:
                return answer
            self.finalizers = body["metadata"].get("finalizers", [])
            return self.raw(operator.server.version)

        async def patch(path: str, operations: list[Json]) -> Json:
            await original(path, {"metadata": {}})
            expected, kept = (
                operation["value"]
                for operation in operations
                if operation["path"] == "/metadata/finalizers"
            )
            assert expected == self.finalizers
            self.finalizers = kept
            return self.raw(operator.server.version)

        operator.server.apply = apply  # type: ignore[method-assign]
        operator.server.patch = patch  # type: ignore[method-assign]

    def raw(self, version: int) -> Json:
        metadata: Json = {
            "name": "g",
            "namespace": "ns",
            "uid": "group-uid",
            "generation": self.generation + self.deleting,
            "resourceVersion": str(version),
            "finalizers": self.finalizers,
        }
        if self.deleting:
            metadata["deletionTimestamp"] = "2024-05-01T12:00:00Z"
        return {"kind": "SharedMemoryGroup", "metadata": metadata, "spec": self.spec}

    def seen(self) -> None:
        """Deliver the current group."""
        self.operator.server.version += 1
        raw = self.raw(self.operator.server.version)
        self.operator.store.put_resource(resources.read(SharedMemoryGroup, raw))

    def delete(self) -> None:
        self.deleting = True
        self.seen()

    def asked(self) -> list[Json]:
        groups: list[Json] = self.operator.spec().get("groups", [])
        return groups

    def report(self, phase: str = "Active", **fields: Any) -> None:
        spec, _ = NodePinConfigSpec.parse(self.operator.spec())
        groups = [
            {"uid": group.uid, "hash": group.hash, "phase": phase, **fields}
            for group in spec.groups
        ]
        self.write_status({"groups": groups})

    def write_status(self, status: Json) -> None:
        """Write this status of the node, and deliver it."""
        config = self.operator.server.objects[config_path("n1")]
        config["status"] = status
        self.operator.store.put_config(transform.node_pin_config(copy.deepcopy(config))[1])

    def edit(self, **changes: Any) -> None:
        self.spec |= changes
        self.generation += 1
        self.seen()

    def seen_without_finalizer(self, path: str) -> None:
        """Deliver the removal of the finalizer before the answer to its write."""
        if path == GROUP:
            raw = self.raw(self.operator.server.version)
            raw["metadata"]["finalizers"] = []
            self.operator.store.put_resource(resources.read(SharedMemoryGroup, raw))

    def status(self) -> Json:
        status: Json = self.operator.server.objects.get(f"{GROUP}/status", {}).get("status", {})
        return status

    def conditions(self) -> dict[str, tuple[str, str]]:
        conditions = self.status().get("conditions", [])
        return {
            condition["type"]: (condition["status"], condition["reason"])
            for condition in conditions
        }

    async def living(self) -> None:
        """Wait until the spec has the group, and report the group."""
        self.operator.node()
        self.operator.agent()
        self.operator.pod()
        self.seen()
        await self.operator.until(self.asked)
        self.report(charge=4096)

    async def rejected(self) -> None:
        """Edit the group so that it is rejected, and wait until the node drains the group."""
        self.edit(**PIN_LIMIT)
        await self.operator.until(lambda: self.asked() and self.asked()[0]["draining"])

    async def draining(self) -> None:
        """Delete a reported group, and wait until the node drains the group."""
        await self.living()
        self.delete()
        await self.operator.until(lambda: self.asked() and self.asked()[0]["draining"])

    async def reconcile(self) -> None:
        """Let the operator reconcile again, as after any change of the node."""
        self.operator.pod(f"p{self.operator.server.version}")
        await self.operator.rest()

    async def gone(self) -> None:
        await self.operator.until(lambda: not self.finalizers)

    def events(self) -> list[str]:
        return [
            event["note"]
            for event in self.operator.server.events
            if event["reason"] == "LeftOnNode"
        ]


@pytest.mark.rule("M10")
def test_finalizer_of_new_group_is_written_before_any_spec() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        operator.node()
        operator.pod()
        case.seen()
        await operator.until(case.asked)
        applied = operator.server.applied
        body = operator.server.objects[GROUP]
        assert body["metadata"]["finalizers"] == [FINALIZER]
        assert "spec" not in body
        last = len(applied) - 1 - applied[::-1].index(config_path("n1"))
        assert applied.index(GROUP) < last
        assert applied.count(GROUP) == 1

    scenario(work)


def test_finalizer_without_the_lease_is_not_written() -> None:
    async def work(operator: Operator) -> None:
        operator.leading = False
        case = Case(operator)
        case.seen()
        await operator.rest()
        assert operator.server.applied == []
        operator.leading = True
        operator.renewed.set()
        await operator.until(lambda: case.finalizers)

    scenario(work)


@pytest.mark.rule("M10")
def test_finalizer_of_released_group_is_removed_without_a_status_write() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        case.report("Draining", charge=4096)
        await operator.rest()
        assert case.finalizers == [FINALIZER]
        writes = operator.server.applied.count(f"{GROUP}/status")
        case.report("Released")
        await case.gone()
        await operator.rest()
        assert operator.server.applied.count(f"{GROUP}/status") == writes
        assert case.events() == []
        operator.store.remove_resource("sharedmemorygroups/ns/g", "group-uid")
        await operator.until(lambda: not case.asked())
        assert operator.store.uids == []

    scenario(work)


def test_finalizer_with_silent_agent_is_removed_after_two_minutes_with_an_event() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        case.report("Draining", charge=4096)
        operator.agent(ready=False)
        await operator.rest()
        operator.now = LEFT_SECONDS - 1
        await case.reconcile()
        assert case.finalizers == [FINALIZER]
        operator.agent(ready=True)
        await operator.rest()
        operator.now = LEFT_SECONDS + 1
        operator.agent(ready=False)
        await operator.rest()
        assert case.finalizers == [FINALIZER], "the agent was ready in between"
        operator.now += LEFT_SECONDS
        await case.reconcile()
        await case.gone()
        await operator.until(case.events)
        (note,) = case.events()
        assert "node n1" in note
        assert "4Ki of its memory" in note
        assert "AgentSilent" in note

    scenario(work)


def test_finalizer_with_group_unknown_to_the_agent_is_removed_after_two_minutes() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        reason = {"uid": "group-uid", "reason": "Unknown", "message": "of a newer version"}
        case.write_status({"unsupportedLimits": [reason]})
        await operator.rest()
        operator.now = LEFT_SECONDS
        await case.reconcile()
        await case.gone()
        await operator.until(case.events)
        assert "an unknown amount" in case.events()[0]

    scenario(work)


def test_finalizer_in_deleted_namespace_is_removed_two_minutes_after_the_last_member() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        case.report("Draining", charge=4096)
        operator.store.put_namespace(Namespace("ns", terminating=True))
        await operator.rest()
        operator.now = LEFT_SECONDS
        await case.reconcile()
        assert case.finalizers == [FINALIZER], "the node still has member pods"
        for pod in list(operator.store.cluster.pods_on("n1")):
            operator.store.remove_pod(pod.uid)
        await operator.until(lambda: not case.asked()[0]["members"][0]["pods"])
        case.report("Draining", charge=4096, message="it waits for process 1")
        await operator.rest()
        assert case.finalizers == [FINALIZER]
        operator.now += LEFT_SECONDS
        case.report("Draining", charge=4096, message="it waits for process 2")
        await case.gone()
        await operator.until(case.events)
        assert "process 2" in case.events()[0]
        (event,) = (event for event in operator.server.events if event["reason"] == "LeftOnNode")
        assert event["metadata"]["namespace"] == "default", "the namespace accepts no Events"
        assert (event["regarding"]["kind"], event["regarding"]["name"]) == ("Node", "n1")

    scenario(work)


@pytest.mark.rule("M10")
def test_finalizer_with_failed_removal_waits_two_minutes_and_with_a_borrower_without_end() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        case.report("Draining", charge=4096, reason="InUse", message="it waits for process 1")
        await operator.rest()
        operator.now = LEFT_SECONDS * 10
        await case.reconcile()
        case.report("Draining", charge=4096, reason="NotRemoved", message="it is busy")
        await operator.rest()
        operator.now += LEFT_SECONDS - 1
        await case.reconcile()
        case.report("Draining", charge=4096, reason="NotRemoved", message="it is busy")
        await operator.rest()
        assert case.finalizers == [FINALIZER]
        operator.now += 1
        await case.reconcile()
        await case.gone()
        await operator.until(case.events)
        assert "node n1" in case.events()[0]
        assert "NotRemoved: it is busy" in case.events()[0]

    scenario(work)


PIN_LIMIT: Json = {"members": [{"podSelector": {}, "pinLimit": "1Mi"}]}


@pytest.mark.rule("M10")
@pytest.mark.parametrize("watch_first", [False, True])
def test_finalizer_of_rejected_group_is_removed_after_its_nodes_drained(
    watch_first: bool,
) -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.living()
        await case.rejected()
        operator.node("n2", "other")
        operator.pod("p2", "n2")
        case.report("Draining", charge=4096, reason="InUse", message="it waits for process 1")
        await operator.rest()
        operator.now = LEFT_SECONDS * 10
        await case.reconcile()
        assert case.finalizers == [FINALIZER]
        assert operator.spec("n2")["pods"]
        assert operator.spec("n2")["groups"] == [], "no other node gets the rejected group"
        conditions = case.conditions()
        assert conditions["Accepted"] == ("False", "NotSupported")
        assert conditions["Drained"] == ("False", "Draining")
        if watch_first:
            operator.server.meanwhile = lambda path: case.seen_without_finalizer(path)
        case.report("Released")
        await case.gone()
        await operator.until(lambda: not case.asked())
        await operator.until(lambda: "Drained" not in case.conditions())
        await operator.rest()
        assert operator.server.applied.count(GROUP) == 2
        assert case.events() == []

    scenario(work)


@pytest.mark.rule("M10")
def test_finalizer_of_deleted_rejected_group_waits_for_its_nodes() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.living()
        await case.rejected()
        case.delete()
        case.report("Draining", charge=4096, reason="InUse")
        await operator.rest()
        assert case.conditions()["Drained"] == ("False", "Draining")
        operator.agent(ready=False)
        await operator.rest()
        operator.now = LEFT_SECONDS
        assert case.finalizers == [FINALIZER]
        await case.reconcile()
        await case.gone()
        await operator.until(case.events)
        assert "node n1" in case.events()[0]

    scenario(work)


def test_group_accepted_again_stops_draining() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.living()
        await case.rejected()
        case.report("Draining", charge=4096, reason="InUse")
        case.edit(members=[{"podSelector": {}}])
        await operator.until(lambda: case.asked() and not case.asked()[0]["draining"])
        await operator.until(lambda: case.conditions()["Accepted"] == ("True", "Accepted"))
        assert case.finalizers == [FINALIZER]
        assert "Drained" not in case.conditions()

    scenario(work)


def test_group_with_path_no_longer_allowed_drains() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator, backing={"tmpfs": {"path": "/run/a"}})
        operator.store.put_namespace(Namespace("ns", allowed="path:/run/a"))
        await case.living()
        operator.store.put_namespace(Namespace("ns"))
        await operator.until(lambda: case.asked() and case.asked()[0]["draining"])
        assert "allowed" not in case.asked()[0]
        await operator.rest()
        assert case.finalizers == [FINALIZER]
        case.report("Draining", reason="NotAllowed")
        await case.gone()
        await operator.until(lambda: not case.asked())
        assert case.events() == []

    scenario(work)


@pytest.mark.parametrize("end", ["node", "policy", "unreadable"])
def test_finalizer_without_reason_to_wait_is_removed_at_once(end: str) -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        case.report("Draining", charge=4096)
        await operator.rest()
        assert case.finalizers == [FINALIZER]
        if end == "node":
            operator.store.remove_node("n1")
        else:
            changes: dict[str, Json] = {
                "policy": {"deletionPolicy": "Orphan"},
                "unreadable": {"novelty": True},
            }
            case.edit(**changes[end])
        await case.gone()
        assert case.events() == []

    scenario(work)


def test_finalizer_removed_by_hand_is_restored_and_the_node_keeps_the_group() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        operator.node()
        operator.pod()
        case.seen()
        await operator.until(case.asked)
        writes = operator.server.applied.count(config_path("n1"))
        case.finalizers = []
        case.seen()
        await operator.until(lambda: case.finalizers)
        assert operator.server.applied.count(config_path("n1")) == writes

    scenario(work)


@pytest.mark.rule("H3")
def test_finalizer_after_operator_restart_waits_for_the_same_nodes() -> None:
    async def before(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        kept.append(copy.deepcopy(operator.server.objects[config_path("n1")]))

    async def after(operator: Operator) -> None:
        operator.server.objects[config_path("n1")] = kept[0]
        case = Case(operator)
        case.finalizers = [FINALIZER]
        operator.node()
        operator.agent()
        operator.store.put_config(transform.node_pin_config(copy.deepcopy(kept[0]))[1])
        case.delete()
        await operator.until(lambda: case.asked() and not case.asked()[0]["members"][0]["pods"])
        await operator.rest()
        assert case.finalizers == [FINALIZER]
        case.report("Released")
        await case.gone()

    kept: list[Json] = []
    scenario(before)
    scenario(after)


@pytest.mark.rule("H3", "M9")
def test_group_on_node_without_member_survives_an_operator_restart() -> None:
    async def before(operator: Operator) -> None:
        case = Case(operator)
        await case.living()
        operator.store.remove_pod("p1")
        await operator.until(lambda: not case.asked()[0]["members"][0]["pods"])
        case.report(charge=4096)
        kept.append(copy.deepcopy(operator.server.objects[config_path("n1")]))

    async def after(operator: Operator) -> None:
        operator.server.objects[config_path("n1")] = kept[0]
        case = Case(operator)
        case.finalizers = [FINALIZER]
        operator.leading = False
        operator.node()
        operator.agent()
        await operator.rest()
        operator.store.put_config(transform.node_pin_config(copy.deepcopy(kept[0]))[1])
        case.seen()
        operator.leading = True
        operator.renewed.set()
        await operator.rest()
        assert len(case.asked()) == 1
        case.delete()
        await operator.until(lambda: case.asked()[0]["draining"])
        await operator.rest()
        assert case.finalizers == [FINALIZER]
        case.report("Released")
        await case.gone()

    kept: list[Json] = []
    scenario(before)
    scenario(after)


@pytest.mark.rule("M10")
@pytest.mark.parametrize("phase", ["Pending", "Active", "Draining"])
def test_finalizer_ignores_the_report_of_a_node_without_the_group(phase: str) -> None:
    """A report with a stolen token about a group of another node must not delay the deletion."""

    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.living()
        operator.node("liar", "liar-uid")
        operator.agent(node="liar")
        operator.pod("other", "liar")
        pod = operator.store.cluster.pod("other")
        assert pod is not None
        operator.store.put_pod(replace(pod, namespace="elsewhere"))
        await operator.until(lambda: operator.spec("liar"))
        config = copy.deepcopy(operator.server.objects[config_path("liar")])
        config["status"] = {"groups": [{"uid": "group-uid", "hash": "", "phase": phase}]}
        operator.store.put_config(transform.node_pin_config(config)[1])
        case.delete()
        await operator.until(lambda: case.asked()[0]["draining"])
        case.report("Released")
        await case.gone()
        assert operator.spec("liar")["groups"] == []
        assert case.events() == []

    scenario(work)


def test_group_on_node_survives_the_deletion_of_the_nodepinconfig() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.draining()
        for pod in list(operator.store.cluster.pods_on("n1")):
            operator.store.remove_pod(pod.uid)
        await operator.until(lambda: not case.asked()[0]["members"][0]["pods"])
        del operator.server.objects[config_path("n1")]
        operator.store.remove_config("n1")
        await operator.until(case.asked)
        assert case.finalizers == [FINALIZER]

    scenario(work)


def test_group_and_limit_with_the_same_name_are_separate() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        operator.node()
        operator.pod()
        operator.limit()
        case.spec["backing"] = {"memfd": {"name": "l"}}
        raw = case.raw(1)
        raw["metadata"]["name"] = "l"
        operator.store.put_resource(resources.read(SharedMemoryGroup, raw))
        await operator.until(operator.status)
        path = "/apis/pinwarden.io/v1alpha1/namespaces/ns/sharedmemorygroups/l/status"
        await operator.until(lambda: path in operator.server.objects)
        collector = ClusterCollector(operator.store, lambda: True, operator.items, pods=False)
        accepted = {"condition": "Accepted", "status": "True"}

        def counts() -> dict[str, float]:
            families = [
                family
                for family in collector.collect()
                if family.name.endswith(("_groups", "_limits"))
            ]
            samples = (
                sample
                for family in families
                for sample in family.samples
                if sample.labels == accepted
            )
            return {sample.name.rpartition("_")[2]: sample.value for sample in samples}

        await operator.until(lambda: counts() == {"groups": 1, "limits": 1})
        assert operator.server.objects[path]["status"]["backing"] == "memfd"

    scenario(work)


def test_status_with_new_borrower_is_written_after_figures_used_their_budget() -> None:
    async def work(operator: Operator) -> None:
        case = Case(operator)
        await case.living()
        await operator.until(lambda: case.status().get("chargeBytes") == 4096)
        (entry,) = operator.store.resources.values()
        bucket = entry.write_bucket
        use_up(bucket, SPARED_BY_FIGURES)
        case.report(charge=8192)
        await operator.rest()
        assert case.status()["chargeBytes"] == 4096
        case.report(
            charge=8192, borrowers=[{"pod": "p1", "member": True, "borrowed": 4096, "mapped": 4096}]
        )
        await operator.until(lambda: case.status().get("borrowers"))
        assert case.status()["chargeBytes"] == 8192
        use_up(bucket, SPARED_BY_BORROWERS)
        case.report(charge=8192)
        await operator.rest()
        assert case.status()["borrowers"]

    scenario(work)
