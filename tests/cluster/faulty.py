"""A node on which the gate by NRI fails, as its user and its administrator see the fault."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from cluster import chart
from cluster.errors import ClusterError
from cluster.install import ROOT

from ..waiting import until
from .test_nri import FOREIGN, NAMESPACE, PAGES, Gated, container, pod

FREE = "free"
PROGRAMS = ROOT / "tests/cluster/programs"
ALLOW = "SCMP_ACT_ALLOW"
PROFILES: dict[str, dict[str, Any]] = {
    "forbidding": {
        "defaultAction": ALLOW,
        "syscalls": [{"names": ["mlock", "mlock2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    },
    "listening": {
        "defaultAction": ALLOW,
        "listenerPath": "/run/other/seccomp.sock",
        "syscalls": [{"names": ["swapoff"], "action": "SCMP_ACT_NOTIFY"}],
    },
    "default-errno": FOREIGN,
}
LOCK = (
    "import ctypes, mmap; libc = ctypes.CDLL(None, use_errno=True);"
    "page = ctypes.c_char.from_buffer(mmap.mmap(-1, 4096));"
    "print(libc.mlock(ctypes.byref(page), 4096), ctypes.get_errno())"
)
PAUSES = "import signal; signal.pause()"
NRI_TABLE = "[plugins.'io.containerd.nri.v1.nri']"


def localhost(name: str) -> dict[str, Any]:
    return {"seccompProfile": {"type": "Localhost", "localhostProfile": f"{name}.json"}}


def python(name: str, program: str, *words: str, **security: Any) -> dict[str, Any]:
    made = container(name, security)
    return made | {"command": ["python3", "-c", program, *words]}


class Faulty(Gated):
    """The cluster, and what its user and its administrator see of a fault."""

    def start(self, name: str, security: dict[str, Any] | None = None) -> None:
        """Create a pod that locks all it can, with pages that stay."""
        self.apply(pod(name, container("main", security or {}, "stay")))

    def is_gated(self) -> bool:
        """Start a pod, and return whether it is gated from its first call."""
        self.start("trial")
        exact = self.pages("trial") == PAGES
        self.delete("trial")
        return exact

    def reports_level(self, name: str, level: str, words: str = "") -> Callable[[], bool]:
        """Whether a pod is reported at a level, with these words in its message."""
        return lambda: self.levels().get(name) == level and words in self.message(name)

    def exec(self, name: str, program: str, container: str = "main") -> str:
        command = ("exec", name, "-c", container, "--", "python3", "-c", program)
        return self.site.kubectl("-n", NAMESPACE, *command)

    def events(self, name: str) -> str:
        """The messages of the Events of a pod."""
        path = "-o=jsonpath={range .items[*]}{.message}{'\\n'}{end}"
        field = f"--field-selector=involvedObject.name={name}"
        return self.site.kubectl("-n", NAMESPACE, "get", "events", field, path)

    def probe(self) -> str:
        """Why `pinwarden probe` calls the gate by NRI not available, empty if it is available."""
        text = self.site.kubectl(
            *("-n", chart.NAMESPACE, "exec", "ds/pinwarden-agent", "-c", "agent", "--"),
            *("pinwarden", "probe", "--cgroup-root=/host/sys/fs/cgroup", "-o", "json"),
        )
        return str(json.loads(text)["gates"]["nri"]["reason"])

    def has_removed_containers(self) -> bool:
        """Whether the runtime has removed each container that no pod names any more.

        A plugin that hangs would be disconnected because of such a removal, before a container is
        created.
        """
        pods = json.loads(self.site.kubectl("get", "pods", "--all-namespaces", "-o", "json"))
        named = set(re.findall(r"containerd://(\w+)", json.dumps(pods)))
        kept = self.node.exec(["ls", "/var/lib/containerd/io.containerd.grpc.v1.cri/containers"])
        assert kept.returncode == 0
        return named.issuperset(kept.stdout.split())

    def runtime_answers(self) -> bool:
        try:
            self.probe()
        except AssertionError:
            return False
        return True

    def signal_plugin(self, signal: str) -> None:
        """Send a signal to the process of the plugin, once there is one."""

        def is_sent() -> bool:
            try:
                self.node.kill("pinwarden", match="pinwarden nri", signal=signal)
            except ClusterError:
                return False
            return True

        until(is_sent, f"a plugin gets SIG{signal}")

    def restart_runtime(self, *settings: str) -> None:
        """Kill containerd, and wait until it runs again with these settings of NRI."""
        text = "\n".join([NRI_TABLE, *settings, ""]) if settings else ""
        folder = "/etc/containerd"
        script = (
            f"[ -f {folder}/plain ] || cp {folder}/config.toml {folder}/plain;"
            f"{{ cat {folder}/plain; cat <<'E'\n{text}E\n}} > {folder}/config.toml"
        )
        assert self.node.exec(["sh", "-c", script]).returncode == 0
        self.node.kill("containerd")
        until(self.runtime_answers, "containerd runs again")

    def runtime_config(self, identity: str) -> dict[str, Any]:
        """The OCI configuration of a container with this `containerID`."""
        name = identity.partition("://")[2]
        path = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{name}/config.json"
        loaded: dict[str, Any] = json.loads(self.node.exec(["cat", path]).stdout)
        return loaded

    def identities(self, name: str, namespace: str) -> dict[str, str]:
        """The `containerID` of each running container of a pod."""
        status = self.get("pod", name, namespace)["status"]
        return {
            each["name"]: each["containerID"]
            for each in status.get("containerStatuses", [])
            if "running" in each["state"]
        }

    @contextmanager
    def other_plugin(self, index: str, field: str) -> Iterator[None]:
        """Another NRI plugin, connected meanwhile, that changes this field in each container."""
        program = (PROGRAMS / "other_plugin.py").read_text()
        made = pod(f"other-{index}", python("main", program, index, field, NAMESPACE, runAsUser=0))
        mount_host(made, "/var/run/nri", "/host/nri")
        with self.beside(made, "synchronized"):
            yield

    @contextmanager
    def beside(self, made: dict[str, Any], ready: str) -> Iterator[None]:
        """A pod of another namespace, running meanwhile, that logs a line when it is ready."""
        made["metadata"]["namespace"] = FREE
        name = made["metadata"]["name"]
        self.apply(made)
        run = partial(self.site.kubectl, "-n", FREE)
        run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
        until(lambda: ready in run("logs", name), f"{name} is ready")
        yield
        run("delete", "pod", name, "--now", "--wait=true")


def mount_host(made: dict[str, Any], path: str, target: str) -> None:
    made["spec"]["volumes"] = [
        {"name": "host", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    ]
    made["spec"]["containers"][0]["volumeMounts"] = [{"name": "host", "mountPath": target}]
