"""What the pod of rank 0 serves to Prometheus, under the names of the operator."""

from __future__ import annotations

import urllib.request
from typing import Any

from finetune_api.contract import AttemptFacts
from finetune_trainer.reporting import live_metrics

ATTEMPT = AttemptFacts(namespace="team", name="demo", uid="u", attempt=1, job_name="demo-0a1b2-1")


def test_each_reading_shows_the_newest_progress() -> None:
    progress: dict[str, Any] = {}
    port = live_metrics.serve(0, ATTEMPT, "sft", lambda: progress)

    def read() -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    assert read() == ""
    progress.update({"activity": "Training", "step": 5, "totalSteps": 20, "loss": "1.5"})
    assert 'finetune_job_progress_ratio{namespace="team",name="demo",stage="sft"} 0.25\n' in read()
    progress.update({"step": 6})
    assert 'finetune_job_step{namespace="team",name="demo",stage="sft"} 6.0\n' in read()


def test_a_port_that_is_taken_never_ends_a_training() -> None:
    taken = live_metrics.serve(0, ATTEMPT, "sft", dict)
    assert taken is not None
    assert live_metrics.serve(taken, ATTEMPT, "sft", dict) is None
