"""A job that is stopped and kept, and a job that is suspended again and again: the weights of their artifacts."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_api.contract import ResolvedJob
from safetensors.torch import load_file

from tests.trainer.support import fake_api, tiny
from tests.trainer.support.attempt import Rows, Series, in_step, killed, stopped
from tests.trainer.support.fake_api import FakeApi, Json
from tests.trainer.support.forge import Forge

STEPS = 8
EVALUATED = {"evaluation": {"datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}], "everySteps": 3}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    tiny.save_model(root / "models" / "model", attention_dropout=0.1)
    tiny.save_rows(root / "data" / "rows.jsonl", rows=21)
    return root


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path / "serviceaccount")
    yield server
    server.close()


def job(method: str = "lora", **spec: Any) -> ResolvedJob:
    made = tiny.job(
        training={"maxSteps": STEPS, "microBatchSize": 2, "logEverySteps": 3},
        tuning={"method": method, **({"lora": {"rank": 4, "dropout": 0.1}} if method.endswith("lora") else {})},
        **{"checkpoints": {"everySteps": 2}, **spec},
    )
    return made.model_copy(update={"runtime": made.runtime.model_copy(update={"progress_interval_seconds": 1})})


def stops(body: Json) -> tuple[int, Json]:
    """The answer of an API server to a report. The user stops the job after its fourth step."""
    code, answer = fake_api.accept(body)
    trains = body["status"].get("progress", {}).get("step", 0) >= 4
    return code, {**answer, "spec": {"stop": "keep"}} if trains else answer


def waits(rank: int, *, step: int) -> None:
    """Rank 0 stays in a step until it has seen that the user stops the job."""
    from finetune_trainer.reporting.status import Reporter

    reporters: list[Reporter] = []
    made = Reporter.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        reporters.append(self)
        made(self, *args, **kwargs)

    def wait() -> None:
        while not reporters[0].keep_requested:
            time.sleep(0.01)

    mock.patch.object(Reporter, "__init__", init).start()
    if rank == 0:
        in_step(step, wait)


def same_weights(series: Series, step: int) -> bool:
    """Whether the artifact has the weights of the checkpoint of this step, by value: headers may differ."""
    [checkpoint] = series.home.glob(f"checkpoints/*/checkpoint-{step}")
    [artifact] = (series.home / "artifact").glob("*.safetensors")
    kept, saved = load_file(artifact), load_file(checkpoint / artifact.name)
    return kept.keys() == saved.keys() and all(kept[name].equal(saved[name]) for name in saved)


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_learns_of_a_stop_by_its_report_makes_the_artifact_of_that_step(
    forge: Forge, root: Path, tmp_path: Path, api: FakeApi, world: int
) -> None:
    api.answer = stops
    series = Series(forge, root, tmp_path / "job", job(), api=api.server)
    assert series.run(world=world, end=partial(waits, step=5)) == 0, series.log
    result = series.result
    assert (result.exit_code, result.reason) == (0, "StoppedByUser")
    assert result.message == f"Training was stopped by the user (spec.stop) at step 5 of {STEPS}"
    assert same_weights(series, 5)
    assert result.metrics is not None
    assert result.metrics["steps"] == "5"
    done = json.loads((series.home / "RESULT.json").read_text())["result"]
    assert result.artifact is not None
    assert (done["reason"], done["artifact"]) == (result.reason, result.artifact.to_dict())
    assert series.run() == 0, "it is done, also for another attempt"
    assert (series.result.reason, series.first_steps) == ("StoppedByUser", [1])


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        ("lora", {}),
        ("qlora", {}),
        ("full", {}),
        ("lora", EVALUATED),
    ],
    ids=["lora", "qlora", "full", "evaluated"],
)
def test_the_artifact_of_the_newest_checkpoint_is_made_without_training(
    forge: Forge, root: Path, tmp_path: Path, method: str, spec: dict[str, Any]
) -> None:
    """Two ranks trained; a single rank keeps."""
    series = Series(forge, root, tmp_path / "job", job(method, **spec))
    assert series.run(world=2, end=partial(killed, step=6, victim=1)) == 137, series.log
    assert series.run(world=2, keep=True) == 0, series.log
    assert series.result.reason == "StoppedByUser"
    step = int(series.result.message.partition("at step ")[2].split()[0])
    assert step in (2, 4)
    assert series.result.metrics is not None
    assert series.result.metrics["steps"] == str(step)
    assert same_weights(series, step)
    rows = [event.batches for event in series.children[-1].received if isinstance(event, Rows)]
    assert not any(rows), "no step is trained"
    assert (series.home / "RESULT.json").exists()


def test_nothing_can_be_kept_without_a_checkpoint(forge: Forge, root: Path, tmp_path: Path) -> None:
    series = Series(forge, root, tmp_path / "job", job(checkpoints={}))
    assert series.run(end=partial(killed, step=2, victim=0)) == 137
    assert series.run(keep=True) == 66
    assert series.result.reason == "NothingToKeep"
    assert not (series.home / "artifact").exists()


def test_a_job_suspended_five_times_ends_with_the_weights_of_an_unbroken_run(
    forge: Forge, root: Path, tmp_path: Path
) -> None:
    whole = Series(forge, root, tmp_path / "whole", job())
    assert whole.run() == 0, whole.log
    broken = Series(forge, root, tmp_path / "broken", job())
    for step in (2, 3, 5, 6, 7):
        assert broken.run(end=partial(stopped, step=step)) == 75, broken.log
    assert broken.run() == 0, broken.log
    assert broken.weights == whole.weights
    assert broken.logged("loss") == whole.logged("loss")
