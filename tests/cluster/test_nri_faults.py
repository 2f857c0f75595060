"""Faults of the gate by NRI, each on a real node. docs/nri-faults.md has the table.

Three things are true in each fault: no container fails for good, no pod is called exact that is
not, and no container of an ungoverned pod is changed. The tests run in their order: the last ones
change the node's runtime and the installation.
"""

import json
from collections.abc import Iterator
from functools import partial

import pytest

from cluster import chart
from cluster.cluster import Cluster

from ..waiting import until
from .faulty import (
    FREE,
    LOCK,
    PAUSES,
    PROFILES,
    PROGRAMS,
    Faulty,
    localhost,
    mount_host,
    python,
)
from .test_install import RELEASE, Site
from .test_nri import LIMIT, NAMESPACE, PAGES, container, pod


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    """A cluster of one node with the gate by NRI, and a limit on all pods of a namespace."""
    with Cluster() as cluster:
        made = Faulty(Site(cluster))
        for namespace in (NAMESPACE, FREE):
            made.site.kubectl("create", "namespace", namespace)
        for name, profile in PROFILES.items():
            made.add_profile(name, profile)
        made.install()
        made.apply(LIMIT)
        until(made.registered, "the plugin is registered at containerd")
        yield made


@pytest.mark.rule("P1", level="Deny")
def test_call_that_the_own_profile_denies_stays_denied_with_its_errno(faulty: Faulty) -> None:
    faulty.start("forbidding", localhost("forbidding"))
    assert faulty.pages("forbidding") == 0
    assert faulty.exec("forbidding", LOCK).split() == ["-1", "13"]
    until(faulty.reports_level("forbidding", "Deny"), "its other pinning calls are gated")
    faulty.delete("forbidding")


@pytest.mark.rule("H1")
def test_profile_that_cannot_carry_the_gate_stays_as_it_is(faulty: Faulty) -> None:
    reasons = {"listening": "a listener of its own", "default-errno": "a default errno"}
    listener = pod("listener", python("main", (PROGRAMS / "listener.py").read_text(), runAsUser=0))
    mount_host(listener, "/run/other", "/host/other")
    with faulty.beside(listener, "listening"):
        for name in reasons:
            faulty.start(name, localhost(name))
        for name, reason in reasons.items():
            faulty.pages(name)
            identity = faulty.identities(name, NAMESPACE)["main"]
            policy = faulty.runtime_config(identity)["linux"]["seccomp"]
            for field in ("listenerPath", "defaultErrnoRet"):
                assert policy.get(field) == PROFILES[name].get(field)
            until(faulty.reports_level(name, "Converge", reason), "the report says why")
        faulty.delete(*reasons)


@pytest.mark.rule("P1", level="Deny")
def test_pod_in_a_user_namespace_is_gated(faulty: Faulty) -> None:
    """The kernel mounts `/proc` in a user namespace only beside a whole one; here it is covered."""
    script = "mkdir -p /run/proc && mount -t proc proc /run/proc"
    assert faulty.node.exec(["sh", "-c", script]).returncode == 0
    made = pod("mapped", container("main", {}, "stay"))
    made["spec"]["hostUsers"] = False
    faulty.apply(made)
    assert faulty.pages("mapped") == PAGES
    until(faulty.reports_level("mapped", "Deny"), "the pod is limited exactly")
    faulty.delete("mapped")


def test_containers_of_ungoverned_and_static_pods_are_not_changed(faulty: Faulty) -> None:
    silent = python("silent", PAUSES)
    default = python("default", PAUSES, seccompProfile={"type": "RuntimeDefault"})
    static = pod("static", silent)
    static["metadata"]["namespace"] = FREE
    script = "mkdir -p /etc/kubernetes/manifests && cat > /etc/kubernetes/manifests/static.json"
    script += f" <<'E'\n{json.dumps(static)}\nE"
    assert faulty.node.exec(["sh", "-c", script]).returncode == 0
    free = pod("free", silent, default)
    free["metadata"]["namespace"] = FREE
    faulty.apply(free)
    run = partial(faulty.site.kubectl, "-n", FREE)
    run("wait", "--for=condition=Ready", "pod/free", "--timeout=120s")
    identities = faulty.identities("free", FREE)
    assert "seccomp" not in faulty.runtime_config(identities["silent"])["linux"]
    policy = faulty.runtime_config(identities["default"])["linux"]["seccomp"]
    assert "listenerPath" not in policy
    assert "SCMP_ACT_NOTIFY" not in str(policy)
    filters = "print(*[line for line in open('/proc/1/status') if 'Seccomp' in line])"
    text = run("exec", "free", "-c", "silent", "--", "python3", "-c", filters)
    assert text.split() == ["Seccomp:", "0", "Seccomp_filters:", "0"]
    name = f"static-{faulty.node.name}"
    until(lambda: name in run("get", "pods", "-o", "name"), "the kubelet reports the static pod")
    run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
    identity = faulty.identities(name, FREE)["silent"]
    assert "seccomp" not in faulty.runtime_config(identity)["linux"]
    assert faulty.node.exec(["rm", "/etc/kubernetes/manifests/static.json"]).returncode == 0
    run("delete", "pod", "free", "--now")


@pytest.mark.parametrize("index", ["10", "95"])
def test_another_plugin_that_sets_the_policy_is_a_conflict_until_it_ends(
    faulty: Faulty, index: str
) -> None:
    """The container fails to start whichever plugin is asked first."""
    name = f"conflict-{index}"
    with faulty.other_plugin(index, "seccomp"):
        faulty.start(name)
        until(lambda: "both tried to set" in faulty.events(name), "an Event names the conflict")
        until(lambda: faulty.logged(f"pod {NAMESPACE}/{name} was rejected"), "the log says so")
    assert faulty.pages(name) == PAGES
    faulty.delete(name)


@pytest.mark.rule("P1", level="Deny")
def test_another_plugin_that_sets_something_else_is_no_conflict(faulty: Faulty) -> None:
    with faulty.other_plugin("10", "env"):
        faulty.start("changed")
        assert faulty.pages("changed") == PAGES
        said = faulty.exec("changed", "import os; print(os.environ['OTHER_PLUGIN'])")
        assert said.strip() == "was here"
        until(faulty.reports_level("changed", "Deny"), "the pod is limited exactly")
        faulty.delete("changed")


@pytest.mark.rule("H1")
def test_plugin_killed_while_containers_start_stops_none_of_them(faulty: Faulty) -> None:
    names = [f"killed-{number}" for number in range(4)]
    for number, name in enumerate(names):
        faulty.start(name)
        if number == 1:
            faulty.signal_plugin("KILL")
    for name in names:
        exact = faulty.pages(name) == PAGES
        until(faulty.reports(name, exact=exact), f"{name} is called exact only if it is")
    faulty.delete(*names)
    until(faulty.is_gated, "a new pod is gated again")


@pytest.mark.rule("H1")
def test_container_for_which_the_plugin_is_too_slow_is_reported(faulty: Faulty) -> None:
    until(faulty.has_removed_containers, "the runtime has nothing to tell the plugin")
    faulty.signal_plugin("STOP")
    faulty.start("slow")
    until(lambda: "validator plugin" in faulty.events("slow"), "the runtime rejects the container")
    faulty.pages("slow")
    until(faulty.reports_level("slow", "Converge"), "the pod is not called exact")
    until(lambda: "does not run" in faulty.probe(), "probe says that the plugin does not run")
    faulty.signal_plugin("CONT")
    until(faulty.reports_level("slow", "Converge", "a restart gates it"), "the report says so")
    until(faulty.is_gated, "a new pod is gated again")
    faulty.delete("slow")


@pytest.mark.rule("H1", "H3")
def test_runtime_that_restarts_without_nri_and_with_it_keeps_levels(faulty: Faulty) -> None:
    faulty.start("exact")
    faulty.start("foreign", localhost("default-errno"))
    assert faulty.pages("exact") == PAGES
    faulty.pages("foreign")
    until(faulty.reports_level("exact", "Deny"), "the pod is limited exactly")
    faulty.restart_runtime("disable = true")
    until(lambda: "cannot connect" in faulty.probe(), "probe says that the runtime does not answer")
    faulty.start("disabled")
    faulty.pages("disabled")
    until(faulty.reports_level("disabled", "Converge", "cannot connect"), "the report says why")
    assert faulty.levels()["exact"] == "Deny"
    assert faulty.exec("exact", LOCK).split() == ["-1", "12"]
    faulty.restart_runtime()
    until(lambda: not faulty.probe(), "the plugin is connected again")
    reports = {"foreign": "a default errno", "disabled": "a restart gates it"}
    for name, words in reports.items():
        until(faulty.reports_level(name, "Converge", words), f"the reason of {name} is known")
    assert faulty.levels()["exact"] == "Deny"
    faulty.delete("exact", *reports)


@pytest.mark.rule("H1", "H3")
def test_two_plugins_in_a_rollout_are_no_conflict_and_find_a_moved_socket(faulty: Faulty) -> None:
    """The new plugin expects the socket elsewhere, and the runtime moves it later."""
    run = partial(faulty.site.kubectl, "-n", chart.NAMESPACE)

    def plugins() -> set[str]:
        component = "app.kubernetes.io/component=holder"
        return set(run("get", "pods", "-l", component, "-o", "name").split())

    before, names = plugins(), list[str]()
    directory = "--set=gate.nri.directory=/run/elsewhere"
    faulty.site.helm(
        *("upgrade", RELEASE[0], str(chart.CHART), *RELEASE[1:], "--reuse-values", directory)
    )

    def is_replaced() -> bool:
        names.append(f"rolled-{len(names)}")
        faulty.start(names[-1])
        faulty.pages(names[-1])
        return plugins().isdisjoint(before)

    until(is_replaced, "the rollout is complete")
    assert faulty.logged("this one stands by")
    for name in names:
        assert "both tried" not in faulty.events(name)
        exact = faulty.pages(name) == PAGES
        until(faulty.reports(name, exact=exact), f"{name} is called exact only if it is")
    until(lambda: "cannot connect" in faulty.probe(), "the plugin misses the socket")
    faulty.restart_runtime('socket_path = "/run/elsewhere/nri.sock"')
    until(faulty.is_gated, "a new pod is gated")
