"""What jobs cost whose pods wait: on a full cluster, that is most of them for most of the time.

``python -m tests.bench.waiting [--jobs N] [--minutes M]`` starts a control plane without kubelet and scheduler, so that
every pod waits for ever, and an operator behind the proxy of the fault tests, which counts its requests. It prints:

- requests a second by verb and resource while all jobs wait, and the CPU of API server and etcd in percent of a core,
  with the operator and with the operator stopped;
- the seconds until a new job has its child Job after a restart of the operator, and what it writes after a restart
  without a new job;
- the seconds until a namespace full of jobs is gone, with the operator and with the operator stopped.

All CPU figures are of processes; the load of the machine is printed beside them.
"""

import argparse
import contextlib
import copy
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests import chart, cluster
from tests.cluster import Cluster, process
from tests.controlplane import kubelet, operator_process
from tests.controlplane.lane import Lane, allow_leases, lane
from tests.kube import ApiError, Kube, Object, until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sft-lora.yaml"
NAME = "bench-waiting"
IN_A_NAMESPACE = 500
"""Jobs in a namespace at most. There are two namespaces at least: one goes with the operator, one without."""
SETTLED_SECONDS = 20
PATIENCE = 3600.0
SERVERS = ("kube-apiserver", "etcd")
WRITES = ("create", "update", "patch", "delete")


class Usage(NamedTuple):
    """Costs in a span of time."""

    seconds: float
    cpu: dict[str, float]
    """Seconds of each server's CPU."""
    requests: Counter[str]
    """The operator's, by verb and resource."""

    def percent(self, server: str) -> float:
        """Percent of a core."""
        return 100 * self.cpu[server] / self.seconds


class Bench:
    """One control plane and one operator, and the jobs that wait there."""

    def __init__(self, control_plane: Cluster, kube: Kube, own: Lane, home: Path, jobs: int) -> None:
        self.control_plane, self.kube, self.own, self.home = control_plane, kube, own, home
        self.manifest: Object = yaml.safe_load(EXAMPLE.read_text())
        count = max(2, -(-jobs // IN_A_NAMESPACE))
        shares = [jobs // count + (number < jobs % count) for number in range(count)]
        self.namespaces = {f"{NAME}-{os.getpid()}-{number}": share for number, share in enumerate(shares)}

    def submit(self, namespace: str, name: str) -> None:
        manifest = copy.deepcopy(self.manifest)
        manifest["metadata"] = {"name": name}
        manifest["spec"]["startDeadlineSeconds"] = 86400
        self.kube.create(manifest, namespace)

    def fill(self) -> float:
        """Create the jobs; the seconds until the operator and the Job controller have made all their pods."""
        began = time.monotonic()
        for namespace, share in self.namespaces.items():
            self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            for number in range(share):
                self.submit(namespace, f"job-{number}")
        for namespace, share in self.namespaces.items():
            self._until(f"{share} pods in {namespace}", lambda name=namespace, count=share: self.pods(name) >= count)
        return time.monotonic() - began

    def pods(self, namespace: str) -> int:
        page = self.kube.call("GET", f"api/v1/namespaces/{namespace}/pods", limit=1)
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))

    def requests(self) -> Counter[str]:
        """Those of the operator so far."""
        return sum(list(self.own.proxy.requests.values()), Counter())

    def work(self) -> Counter[str]:
        """The same without the renewals of the Lease, which never end."""
        return Counter({name: count for name, count in self.requests().items() if not name.endswith(" leases")})

    def settle(self) -> float:
        """Seconds until the operator has made no request for some time, but for its Lease."""
        began = last = time.monotonic()
        before = self.work()
        while time.monotonic() - last < SETTLED_SECONDS and time.monotonic() - began < PATIENCE:
            time.sleep(1)
            if self.work() != before:
                before, last = self.work(), time.monotonic()
        return last - began

    def measure(self, seconds: float) -> Usage:
        cpu, requests, began = self._cpu(), self.requests(), time.monotonic()
        time.sleep(seconds)
        spent = {server: after - cpu[server] for server, after in self._cpu().items()}
        return Usage(time.monotonic() - began, spent, self.requests() - requests)

    def restart(self) -> tuple[float, float]:
        """Seconds from the start of a new operator process until it answers at /healthz, and until a job that was
        created while there was none has its child Job. Without the proxy, which would compete for the CPU."""
        namespace, operator = next(iter(self.namespaces)), self.own.operator
        self.submit(namespace, "new")
        proxied = self.home / "kubeconfig"
        kept = proxied.read_text()
        operator_process.kubeconfig(self.kube, proxied)
        began = time.monotonic()
        operator.start(wait=False)
        self._until("the operator answers", lambda: operator.health()[0] > 0, every=0.01)
        answers = time.monotonic() - began
        selector = "finetune-operator.io/job=new"
        self._until("the child Job", lambda: bool(self.kube.list("Job", namespace, selector)), every=0.05)
        seconds = time.monotonic() - began
        assert operator.stop() == 0
        proxied.write_text(kept)
        operator.start()
        return answers, seconds

    def remove(self, namespace: str) -> float:
        """Seconds until the namespace is gone."""
        began = time.monotonic()
        self.kube.delete("Namespace", namespace)
        self._until(f"{namespace} is gone", lambda: self.kube.find("Namespace", namespace) is None, every=0.5)
        return time.monotonic() - began

    def _cpu(self) -> dict[str, float]:
        return {server: self._cpu_of(server) for server in SERVERS}

    def _cpu_of(self, server: str) -> float:
        record = process.read(self.control_plane.state, server)
        assert record is not None, f"{server} does not run"
        fields = Path(f"/proc/{record['pid']}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _until(self, what: str, look: Any, every: float = 1.0) -> None:
        until(what, look, timeout=PATIENCE, every=every)


@contextlib.contextmanager
def control_plane() -> Iterator[tuple[Cluster, Kube]]:
    """A control plane with the chart's objects, but for the Deployment."""
    plane = cluster.up(NAME, control_plane_only=True)
    try:
        kube = Kube(plane.kubeconfig)
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": chart.NAMESPACE}})
        for manifest in chart.render(plane.bin / "helm"):
            if manifest["kind"] != "Deployment":
                kube.apply(manifest)
        allow_leases(kube)
        until("FineTuneJobs are served", lambda: _served(kube))
        kubelet.register_node(kube)
        yield plane, kube
    finally:
        plane.down()


def _served(kube: Kube) -> bool:
    try:
        kube.list("FineTuneJob")
    except ApiError:
        return False
    return True


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def rows(with_operator: Usage, without: Usage) -> None:
    for server in SERVERS:
        points = with_operator.percent(server) - without.percent(server)
        pair = f"{with_operator.percent(server):.1f} % of a core, {without.percent(server):.1f} % without"
        print(f"{server}: {pair} ({points:+.1f} points)")
    total = sum(with_operator.requests.values())
    print(f"requests of the operator: {total / with_operator.seconds:.2f} a second")
    for name, count in with_operator.requests.most_common():
        print(f"  {name}: {count} ({count / with_operator.seconds:.3f} a second)")


def run(bench: Bench, jobs: int, minutes: float) -> None:
    bench.own.operator.start()
    seconds = bench.fill()
    spent = bench.requests()
    print(f"{jobs} jobs have pods after {seconds:.0f} s; {sum(spent.values()) / jobs:.1f} requests a job ({load()})")
    print(f"  {dict(spent.most_common())}")
    print(f"the operator settles in {bench.settle():.0f} s more", flush=True)
    with_operator = bench.measure(60 * minutes)
    print(f"all wait, measured for {minutes:g} min ({load()})")
    assert bench.own.operator.stop() == 0
    time.sleep(SETTLED_SECONDS)
    rows(with_operator, bench.measure(60 * minutes))
    before = bench.work()
    answers, seconds = bench.restart()
    print(f"after a restart a new job has its child Job in {seconds:.1f} s; imports take {answers:.1f} s of it", end="")
    print(f" ({load()})", flush=True)
    bench.settle()
    writes = {name: count for name, count in (bench.work() - before).items() if name.split()[0] in WRITES}
    print(f"writes after another restart, but for the Lease: {writes or 'none'}")
    one, two = list(bench.namespaces)[:2]
    gone = bench.remove(one)
    bench.own.operator.kill()
    alone = bench.remove(two)
    sizes = f"{bench.namespaces[one]} and {bench.namespaces[two]} jobs"
    print(
        f"namespaces of {sizes} go in {gone:.0f} s with the operator, {alone:.0f} s without: {gone / alone:.2f}", end=""
    )
    print(f" ({load()})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500, help="2,000 for the page")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each of the two measurements")
    given = parser.parse_args()
    with control_plane() as (plane, kube), tempfile.TemporaryDirectory() as home:
        environment = operator_process.deployed_environment(chart.render(plane.bin / "helm"))
        with lane(kube, environment, Path(home)) as own:
            run(Bench(plane, kube, own, Path(home), given.jobs), given.jobs, given.minutes)


if __name__ == "__main__":
    main()
