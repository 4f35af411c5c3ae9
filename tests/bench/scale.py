"""How fast, and how dearly, a job becomes a batch/v1 Job: this operator beside Kubeflow Trainer with JobSet, in turns.

``python -m tests.bench.scale [--jobs N] [--burst N] [--idle MINUTES] [--alone]`` starts one control plane without
kubelet and scheduler, so that every pod waits. Both sides run on it, one at a time. It prints for each side:

- jobs that come steadily: from the request that creates a job until a watch shows its Job, p50 and p99;
- a burst: the same, and jobs a second;
- CPU a job: the operator's own, and that of API server, etcd and controller manager, until all pods are made;
- the memory of the side's processes, at its peak and after a restart beside all these jobs;
- seconds until a new job is served after a restart;
- requests a job, which a proxy counts for a few jobs apart from all other measurements.

For the operator it also counts what it writes in idle minutes, and prints how long the API server takes for as many
plain Jobs: nobody can be faster than that. If other programs run on the machine, compare CPU and requests, which are
the processes' own, and ratios of the two sides.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

from tests import chart
from tests.bench import peer
from tests.bench.waiting import EXAMPLE, WRITES, control_plane, load
from tests.cluster import Cluster, process
from tests.controlplane import operator_process
from tests.controlplane.fault_proxy import FaultProxy
from tests.controlplane.lane import LEASES, new_lease
from tests.controlplane.operator_process import OperatorProcess
from tests.kube import Kube, Object, until

PER_SECOND = 20
CLIENTS = 8
"""Connections that create a burst."""
COUNTED = 30
"""Jobs of which the requests are counted."""
SETTLED_SECONDS = 10
PATIENCE = 1200.0
SERVERS = ("kube-apiserver", "etcd", "kube-controller-manager")


class Side(Protocol):
    """One of the two."""

    name: str
    config: Path
    """The kubeconfig of its processes."""
    account: tuple[str, str]
    """Namespace and name of its ServiceAccount."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def pids(self) -> list[int]: ...
    def submit(self, kube: Kube, namespace: str, name: str) -> None: ...


class Ours:
    """The operator of this checkout, with the rights and settings of its chart."""

    name = "finetune-operator"
    account = (chart.NAMESPACE, chart.RELEASE)

    def __init__(self, kube: Kube, environment: dict[str, str], home: Path) -> None:
        home.mkdir()
        self.config = operator_process.kubeconfig(kube, home / "kubeconfig")
        settings = {"lease_namespace": LEASES, "lease_name": new_lease(kube), "retry_seconds": 10}
        self._process = OperatorProcess(self.config, environment, home / "log", **settings)
        self._manifest: Object = yaml.safe_load(EXAMPLE.read_text())
        self._manifest["spec"]["startDeadlineSeconds"] = 86400

    def start(self) -> None:
        self._process.start(wait=False)

    def stop(self) -> None:
        self._process.ask_to_end()
        until("the operator has ended", lambda: not self._process.alive, timeout=PATIENCE)

    def pids(self) -> list[int]:
        return [self._process.pid]

    def submit(self, kube: Kube, namespace: str, name: str) -> None:
        manifest = copy.deepcopy(self._manifest)
        manifest["metadata"] = {"name": name}
        kube.create(manifest, namespace)


class Theirs:
    """Kubeflow Trainer and JobSet."""

    name = "Kubeflow Trainer with JobSet"
    account = (peer.NAMESPACE, "peer")

    def __init__(self, kube: Kube, home: Path) -> None:
        home.mkdir()
        peer.install(kube)
        self.config = operator_process.kubeconfig(kube, home / "kubeconfig", "", *self.account)
        self._peer = peer.Peer(self.config, home)

    def start(self) -> None:
        self._peer.start()

    def stop(self) -> None:
        self._peer.stop()

    def pids(self) -> list[int]:
        return self._peer.pids

    def submit(self, kube: Kube, namespace: str, name: str) -> None:
        peer.submit(kube, namespace, name)


class Plain:
    """Nobody: plain Jobs, whose only cost is the API server's."""

    def submit(self, kube: Kube, namespace: str, name: str) -> None:
        pod = {"restartPolicy": "Never", "containers": [{"name": "node", "image": "registry.example/trainer:1"}]}
        # Suspended, so that the Job controller makes no pods meanwhile.
        spec = {"suspend": True, "template": {"spec": pod}}
        kube.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}, namespace)


@dataclass
class Watch:
    """The moments at which the Jobs of a namespace appeared. A thread reads the watch; Jobs are named after the job."""

    kube: Kube
    namespace: str
    seen: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        self._answer = self.kube.stream(f"apis/batch/v1/namespaces/{self.namespace}/jobs", watch="true")
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.shutdown()  # to close it would wait for the thread, which waits for a line

    def _read(self) -> None:
        with contextlib.suppress(Exception), self._answer:  # the end of the watch, whatever it is called
            for line in self._answer:
                event = json.loads(line)
                if event["type"] == "ADDED":
                    owner = event["object"]["metadata"]["ownerReferences"][0]["name"]
                    self.seen.setdefault(owner, time.monotonic())


@dataclass
class Phase:
    """What jobs of one kind cost on one side."""

    jobs: int
    seconds: float
    """From the first request to the last Job."""
    latencies: list[float]
    own: float
    """CPU seconds of the side's processes."""
    servers: dict[str, float]

    def quantile(self, share: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Bench:
    """One control plane, and what is done on it."""

    def __init__(self, plane: Cluster, kube: Kube) -> None:
        self.plane, self.kube = plane, kube
        self._spaces = 0

    def namespace(self) -> str:
        self._spaces += 1
        name = f"scale-{self._spaces}"
        self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        until("its ServiceAccount", lambda: self.kube.find("ServiceAccount", "default", name))
        return name

    def run(self, side: Side, count: int, per_second: float) -> Phase:
        """Create jobs, so many a second (0: as fast as possible), until all have pods and nothing happens any more."""
        namespace = self.namespace()
        idle, sent = [Kube(self.plane.kubeconfig) for _ in range(CLIENTS)], dict[str, float]()

        def create(number: int) -> None:
            client, name = idle.pop(), f"job-{number}"
            if per_second:
                time.sleep(max(0.0, began + number / per_second - time.monotonic()))
            sent[name] = time.monotonic()
            side.submit(client, namespace, name)
            idle.append(client)

        before, own = self._servers(), cpu(side.pids())
        with Watch(Kube(self.plane.kubeconfig), namespace) as watch, ThreadPoolExecutor(CLIENTS) as pool:
            began = time.monotonic()
            list(pool.map(create, range(count)))
            until(
                f"{count} Jobs of {side.name}",
                lambda: side.pids() and len(watch.seen) >= count,
                timeout=PATIENCE,
                every=0.2,
            )
        until("their pods", lambda: self._pods(namespace) >= count, timeout=PATIENCE, every=1)
        time.sleep(SETTLED_SECONDS)
        servers = {name: after - before[name] for name, after in self._servers().items()}
        latencies = [watch.seen[name] - moment for name, moment in sent.items()]
        return Phase(count, max(watch.seen.values()) - began, latencies, cpu(side.pids()) - own, servers)

    def restart(self, side: Side) -> float:
        """Seconds from the start of a side until a job has its Job that was created while the side was down."""
        side.stop()
        namespace = self.namespace()
        with Watch(Kube(self.plane.kubeconfig), namespace) as watch:
            side.submit(self.kube, namespace, "new")
            began = time.monotonic()
            side.start()
            until("the new job's Job", lambda: "new" in watch.seen, timeout=PATIENCE, every=0.02)
            return watch.seen["new"] - began

    def requests(self, side: Side) -> Counter[str]:
        """The requests of a side for a few jobs, by verb and resource, in the jobs' namespace."""
        namespace = self.namespace()
        with self._proxied(side) as proxy:
            for number in range(COUNTED):
                side.submit(self.kube, namespace, f"job-{number}")
            until("their pods", lambda: self._pods(namespace) >= COUNTED, timeout=PATIENCE, every=1)
            time.sleep(2 * SETTLED_SECONDS)
            return Counter(proxy.requests.get(namespace, Counter()))

    def idle(self, side: Side, minutes: float) -> Counter[str]:
        """What a side writes while nothing happens, by verb and resource."""
        with self._proxied(side) as proxy:
            until("it leads", lambda: _made(proxy)["update leases"] > 2, timeout=PATIENCE)
            time.sleep(2 * SETTLED_SECONDS)
            before = _made(proxy)
            time.sleep(60 * minutes)
            spent = _made(proxy) - before
        return Counter({name: count for name, count in spent.items() if name.split()[0] in WRITES})

    def floor(self, count: int) -> float:
        """Plain Jobs that the same clients create in a second, while nobody else wants anything."""
        namespace = self.namespace()
        idle = [Kube(self.plane.kubeconfig) for _ in range(CLIENTS)]

        def create(number: int) -> None:
            client = idle.pop()
            Plain().submit(client, namespace, f"job-{number}")
            idle.append(client)

        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(create, range(count)))
        return count / (time.monotonic() - began)

    @contextlib.contextmanager
    def _proxied(self, side: Side) -> Iterator[FaultProxy]:
        """The side behind a proxy that counts its requests, and costs CPU."""
        admin = yaml.safe_load(self.kube.kubeconfig.read_text())["clusters"][0]["cluster"]
        kept = side.config.read_text()
        with FaultProxy(admin["server"], base64.b64decode(admin["certificate-authority-data"]).decode()) as proxy:
            side.stop()
            operator_process.kubeconfig(self.kube, side.config, proxy.url, *side.account)
            side.start()
            yield proxy
            side.stop()
        side.config.write_text(kept)
        side.start()

    def _pods(self, namespace: str) -> int:
        page = self.kube.call("GET", f"api/v1/namespaces/{namespace}/pods", limit=1)
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))

    def _servers(self) -> dict[str, float]:
        records = {name: process.read(self.plane.state, name) for name in SERVERS}
        return {name: cpu([record["pid"]]) for name, record in records.items() if record is not None}


def cpu(pids: list[int]) -> float:
    """Seconds that the processes have used so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def memory(pids: list[int]) -> float:
    """MiB that the processes have used at most."""
    peaks = [Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0] for pid in pids]
    return sum(map(int, peaks)) / 1024


def _made(proxy: FaultProxy) -> Counter[str]:
    return sum(list(proxy.requests.values()), Counter())


def show(side: Side, what: str, phase: Phase) -> None:
    """One line on the latencies, and one on the CPU."""
    p50, p99 = 1000 * phase.quantile(0.5), 1000 * phase.quantile(0.99)
    print(f"{side.name}, {what}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, {phase.jobs / phase.seconds:.1f} jobs/s")
    servers = ", ".join(f"{name} {1000 * seconds / phase.jobs:.0f}" for name, seconds in phase.servers.items())
    print(f"  CPU a job, in ms: its own {1000 * phase.own / phase.jobs:.1f}; {servers} ({load()})", flush=True)


def measure(bench: Bench, side: Side, jobs: int, burst: int) -> tuple[Phase, Phase]:
    """All measurements of a side but the idle time."""
    side.start()
    bench.run(side, 20, PER_SECOND)  # the first jobs find cold caches and connections
    steady = bench.run(side, jobs, PER_SECOND)
    show(side, f"{jobs} jobs at {PER_SECOND} a second", steady)
    fast = bench.run(side, burst, 0)
    show(side, f"a burst of {burst}", fast)
    peak = memory(side.pids())
    seconds = bench.restart(side)
    time.sleep(SETTLED_SECONDS)
    print(f"  memory at most {peak:.0f} MiB, after a restart {memory(side.pids()):.0f} MiB;", end=" ")
    print(f"a new job has its Job {seconds:.1f} s after a restart ({load()})", flush=True)
    made = bench.requests(side)
    writes = sum(count for name, count in made.items() if name.split()[0] in WRITES)
    print(f"  requests a job: {sum(made.values()) / COUNTED:.1f}, of which {writes / COUNTED:.1f} write")
    print("  " + ", ".join(f"{name} {count / COUNTED:.2f}" for name, count in made.most_common()), flush=True)
    return steady, fast


def compare(ours: tuple[Phase, Phase], theirs: tuple[Phase, Phase]) -> None:
    """Ours divided by theirs."""
    for what, own, other in zip(("steady", "burst"), ours, theirs, strict=True):
        quantiles = [own.quantile(share) / other.quantile(share) for share in (0.5, 0.99)]
        rate = (own.jobs / own.seconds) / (other.jobs / other.seconds)
        servers = sum(own.servers.values()) / own.jobs / (sum(other.servers.values()) / other.jobs)
        print(
            f"ours / theirs, {what}: p50 {quantiles[0]:.2f}, p99 {quantiles[1]:.2f}, jobs/s {rate:.2f},"
            f" own CPU {own.own / own.jobs / (other.own / other.jobs):.2f}, CPU of the servers {servers:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500, help="that come steadily")
    parser.add_argument("--burst", type=int, default=2000)
    parser.add_argument("--idle", type=float, default=0.5, help="minutes; 10 for the page")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    given = parser.parse_args()
    for module in () if given.alone else peer.PROGRAMS:
        peer.build(module)
    with control_plane() as (plane, kube), tempfile.TemporaryDirectory() as home:
        bench = Bench(plane, kube)
        print(f"plain Jobs: {bench.floor(given.jobs):.0f} a second ({load()})", flush=True)
        environment = operator_process.deployed_environment(chart.render(plane.bin / "helm"))
        ours = Ours(kube, environment, Path(home) / "ours")
        own = measure(bench, ours, given.jobs, given.burst)
        spent = bench.idle(ours, given.idle)
        print(f"  writes in {given.idle:g} idle minutes: {dict(spent)} ({load()})", flush=True)
        ours.stop()
        if not given.alone:
            theirs = Theirs(kube, Path(home) / "theirs")
            compare(own, measure(bench, theirs, given.jobs, given.burst))
            theirs.stop()


if __name__ == "__main__":
    main()
