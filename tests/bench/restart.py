"""How long a crash costs: from the end of a rank to the next step, restarted in place and by a new attempt.

``python -m tests.bench.restart [--rounds N]`` prints JSON. The trainer runs as in a pod, by its command line, on a
model so small that loading it takes no time: what is left is the import of the libraries. In each round its rank
crashes twice (a signal that no rank expects): once it may be restarted, once it may not, so that its launcher ends, the
operator's first backoff (10 s) passes and another launcher starts. The time that a cluster needs for new pods
(scheduling, pulling the image, mounting) comes on top of the second, and is not in it.

``load`` is the time from the start of a launcher to its first step. A restart has no more to do than that.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.contract import AttemptFacts

from tests.trainer.support import tiny

BACKOFF = 10.0
"""Seconds that the operator waits before the second attempt."""
PATIENCE = 600.0


class Pod:
    """A launcher of a job in a folder, and what its log of steps says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.attempt = folder, 0
        self.log = folder / "workspace" / "jobs" / "tiny" / "reports" / "trainer_log.jsonl"
        tiny.save_model(folder / "models" / "model")
        tiny.save_rows(folder / "data" / "rows.jsonl")
        job = tiny.job(training={"maxSteps": 1_000_000}, checkpoints={"everySteps": 5})
        runtime = job.runtime.model_copy(update={"allow_cpu": True, "gpus_per_node": 0})
        (folder / "job.json").write_text(json.dumps(job.model_copy(update={"runtime": runtime}).to_dict()))

    def start(self, restarts: int) -> subprocess.Popen[bytes]:
        """Start the next attempt."""
        self.attempt += 1
        facts = AttemptFacts(namespace="n", name="tiny", uid="u", attempt=self.attempt, job_name="j", restarts=restarts)
        (self.folder / "attempt.json").write_text(json.dumps(facts.to_dict()))
        volumes = [f"--volume={claim}={self.folder / claim}" for claim in ("models", "data")]
        command = [sys.executable, "-m", "finetune_trainer", "train", "--job", str(self.folder / "job.json")]
        with (self.folder / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--workspace", str(self.folder / "workspace"), *volumes],
                env={**os.environ, "FINETUNE_POD_UID": f"run-{self.attempt}"},
                stdout=log,
                stderr=log,
            )

    def steps(self) -> int:
        """Lines of the log."""
        return len(self.log.read_bytes().splitlines()) if self.log.exists() else 0

    def version(self) -> int:
        """Another number once a run has cut the log back to the step that it resumes from."""
        return self.log.stat().st_ino if self.log.exists() else 0

    def next_step(self, before: int) -> None:
        """Return when a run that began after ``before`` (`version`) has done a step."""
        self._until(lambda: self.version() != before)
        kept = self.steps()
        self._until(lambda: self.steps() > kept)

    def train(self, steps: int) -> None:
        """Return after some more steps, so that there is a checkpoint."""
        reached = self.steps() + steps
        self._until(lambda: self.steps() >= reached)

    def _until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise SystemExit((self.folder / "launcher.log").read_text())
            time.sleep(0.02)


def crash(launcher: subprocess.Popen[bytes]) -> None:
    """A crash of the launcher's rank, as by an error in a kernel."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGSEGV)


def measure(pod: Pod) -> dict[str, float]:
    """One round: seconds."""
    before, began = pod.version(), time.monotonic()
    launcher = pod.start(restarts=1)
    if before:
        pod.next_step(before)
        load = time.monotonic() - began
    else:
        pod.train(1)
        load = float("nan")  # prepares, too
    pod.train(12)
    before, began = pod.version(), time.monotonic()
    crash(launcher)
    pod.next_step(before)
    in_place = time.monotonic() - began
    pod.train(12)
    before, began = pod.version(), time.monotonic()
    crash(launcher)
    launcher.wait()
    time.sleep(BACKOFF)
    launcher = pod.start(restarts=0)
    pod.next_step(before)
    new_attempt = time.monotonic() - began
    launcher.terminate()
    launcher.wait()
    return {"load": load, "in place": in_place, "new attempt": new_attempt}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
    with tempfile.TemporaryDirectory() as folder:
        pod = Pod(Path(folder))
        measured = [measure(pod) for _ in range(rounds + 1)][1:]  # the first prepares, and fills the page cache
    summary: dict[str, Any] = {}
    for name in measured[0]:
        seconds = sorted(times[name] for times in measured)
        summary[name] = {"median": statistics.median(seconds), "least": seconds[0], "most": seconds[-1]}
    summary["in place beyond load"] = statistics.median(times["in place"] - times["load"] for times in measured)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
