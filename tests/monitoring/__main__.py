"""`python -m tests.monitoring`: draw both dashboards to docs/images.

The API server, the Job controller, the operator and Prometheus are real. The kubelet is played by script, and the
losses that its trainers report are those of a recorded run (tests/golden/losses).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml

from tests import chart, cluster
from tests.controlplane import kubelet, operator_process
from tests.controlplane.lane import LEASES, allow_leases, new_lease
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene, result, stage
from tests.kube import Kube, Object, until
from tests.monitoring.draw import draw
from tests.monitoring.server import serving

LOSSES = chart.CHECKOUT / "tests" / "golden" / "losses"
IMAGES = chart.CHECKOUT / "docs" / "images"
DASHBOARDS = chart.CHART / "files" / "dashboards"
ROUNDS, ROUND_SECONDS = 110, 2.0
TEAMS = ("team-a", "team-b")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Run:
    """A trainer that reports a step a round."""

    scene: Scene
    name: str
    losses: list[float]
    tokens: int
    total: int
    attempt: int = 1
    step: int = 0
    saved: int = 0
    start: int = 0
    checkpoint: Object = field(default_factory=dict)
    pod: Object = field(default_factory=dict)

    def begin(self) -> None:
        self.pod = self.scene.running(self.name, self.attempt)
        self.step = self.start = self.saved
        self.report()

    def report(self) -> None:
        last = self.losses[min(self.step * len(self.losses) // self.total, len(self.losses) - 1)]
        rate = self.tokens * (1 + 0.04 * ((self.step * 7) % 5 - 2))
        progress = {
            "attempt": self.attempt,
            "kind": "train",
            "activity": "Training",
            "step": self.step,
            "totalSteps": self.total,
            "percent": 100 * self.step // self.total,
            "startStep": self.start,
            "summary": f"{self.step}/{self.total}",
            "loss": f"{last:.4f}",
            "tokensPerSecond": f"{rate:.0f}",
            "etaSeconds": round((self.total - self.step) * ROUND_SECONDS * self.tokens / rate),
            "memoryBytes": int(5.2 * 2**30),
            "lastUpdateTime": now(),
        }
        said = {"progress": progress, **({"checkpoint": self.checkpoint} if self.checkpoint else {})}
        self.scene.report(self.pod, said, self.name)

    def advance(self) -> None:
        """Another step; or the end, after the last. A preempted run does nothing."""
        if not self.pod:
            return
        if self.step == self.total:
            self.scene.kubelet.finish(self.pod, 0, json.dumps(result(0, attempt=self.attempt)))
            self.pod = {}
            return
        self.step += 1
        if self.step % 20 == 0:
            self.saved = self.step
            path = f"jobs/{self.name}/checkpoints/{self.step}"
            facts = {"attempt": self.attempt, "step": self.step, "path": path}
            self.checkpoint = {**facts, "time": now(), "seconds": 3}
        self.report()

    def preempt(self) -> None:
        """A drain takes the pod, and the next attempt continues from the newest checkpoint."""
        self.scene.kubelet.evict(self.pod, 75, json.dumps(result(75, attempt=self.attempt)))
        self.attempt, self.pod = self.attempt + 1, {}


def play(first: Scene, second: Scene) -> None:
    """Jobs that train, a job that finds no node, and a job with bad data; a preemption, and an end."""

    def run(scene: Scene, name: str, gpus: int, tokens: int, total: int) -> Run:
        losses = json.loads((LOSSES / f"{name}.json").read_text())["loss"]
        scene.submit(name, resources={"gpusPerNode": gpus}, training={"microBatchSize": 8 // gpus})
        made = Run(scene, name, losses, tokens, total)
        made.begin()
        return made

    def find_no_node() -> None:
        second.submit("no-node")
        second.kubelet.find_no_node(second.pod("no-node"), "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")

    def find_bad_data() -> None:
        first.submit("bad-data")
        first.kubelet.finish(first.preparing("bad-data"), 65, json.dumps(result(65, kind="prepare")))

    preempted = run(first, "sft-lora", 1, 3200, 120)
    training = [preempted]
    happens: dict[int, Callable[[], object]] = {
        6: lambda: training.append(run(first, "sft-full", 2, 2100, 70)),
        12: find_no_node,
        18: lambda: training.append(run(second, "pt-lora", 4, 4300, 300)),
        30: find_bad_data,
        50: preempted.preempt,
        56: preempted.begin,
    }
    for number in range(ROUNDS):
        began = time.monotonic()
        if number in happens:
            happens[number]()
        for one in training:
            one.advance()
        time.sleep(max(0.0, ROUND_SECONDS - (time.monotonic() - began)))


def show(kube: Kube, helm: Path, home: Path) -> None:
    """Run the operator and Prometheus, play, and draw."""
    kubelet.register_node(kube)
    environment = operator_process.deployed_environment(chart.render(helm))
    config = operator_process.kubeconfig(kube, home / "kubeconfig")
    lease = {"lease_namespace": LEASES, "lease_name": new_lease(kube)}
    operator = OperatorProcess(config, environment, home / "operator.log", **lease)
    operator.start()
    manifest = yaml.safe_load((chart.CHECKOUT / "examples" / "sft-lora.yaml").read_text())
    try:
        until("the operator leads", operator.leads, timeout=60)
        with serving(home, [operator.address]) as prometheus:
            start = time.time()
            for team in TEAMS:
                kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team}})
            with stage(kube, TEAMS[0], manifest) as first, stage(kube, TEAMS[1], manifest) as second:
                play(first, second)
                end = time.time()
                every = {"namespace": ".*", "stage": ".*"}
                one = {"namespace": TEAMS[0], "name": "sft-lora"}
                for name, variables in (("platform", every), ("job", one)):
                    target = IMAGES / f"dashboard-{name}.png"
                    filled = draw(DASHBOARDS / f"{name}.json", prometheus, variables, start, end, target)
                    print(f"{target}: {filled} panels with data")
    finally:
        operator.kill()


def main() -> None:
    plane = cluster.up(f"pictures-{os.getpid()}", control_plane_only=True)
    try:
        kube, helm = Kube(plane.kubeconfig), plane.bin / "helm"
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": chart.NAMESPACE}})
        for manifest in chart.render(helm):
            if manifest["kind"] != "Deployment":
                kube.apply(manifest)
        allow_leases(kube)
        with tempfile.TemporaryDirectory() as home:
            show(kube, helm, Path(home))
    finally:
        plane.down()


if __name__ == "__main__":
    main()
