"""Early stopping and the best weights: they are the same in every attempt."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from finetune_api.exit_codes import ExitCode
from finetune_api.status import Progress
from finetune_trainer.artifact import writer
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.row import IGNORED
from finetune_trainer.errors import Diverged, Preempted
from finetune_trainer.reporting.counters import Counters
from finetune_trainer.reporting.trackers.callback import Trackers
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import workflow
from finetune_trainer.stages.sft.trainer import SftTrainer
from finetune_trainer.training import divergence
from finetune_trainer.training.trainer import BaseTrainer
from safetensors.torch import load_file

from tests.trainer.support import fsdp_cpu, tiny
from tests.trainer.support.attempt import Series
from tests.trainer.support.forge import Forge

STEPS = 12
ZERO = torch.zeros(())


def make_run(
    root: Path,
    *,
    workspace: str = "work",
    attempt: int = 1,
    patience: int | None = 2,
    steps: int = STEPS,
    generate: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **more: Any,
) -> Run:
    """A job that learns so fast that it soon overfits: the held-out rows have other words."""
    held = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"no {9 - i}"}]}
        for i in range(4)
    ]
    (root / "data" / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    evaluation: dict[str, Any] = {
        "datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}],
        "everySteps": 2,
        **({"earlyStopping": {"patience": patience}} if patience else {}),
        **({"generate": generate} if generate else {}),
    }
    fast = {"maxSteps": steps, "learningRate": 0.05, "scheduler": "constant", "logEverySteps": 5}
    job = tiny.job(evaluation=evaluation, training=fast | (training or {}), tuning={"method": "lora"}, **more)
    return tiny.make_run(root, job, workspace=workspace, attempt=attempt)


def lines(run: Run, name: str) -> dict[int, float]:
    log = (run.folders.reports / "trainer_log.jsonl").read_text().splitlines()
    return {line["current_steps"]: line[name] for line in map(json.loads, log) if name in line}


def weights(run: Run) -> dict[str, Any]:
    return {
        name: tensor.tolist() for name, tensor in load_file(run.folders.artifact / "adapter_model.safetensors").items()
    }


def end_of(measured: dict[int, float], patience: int = 2) -> tuple[int, int]:
    """(best step, step at which patience ends)."""
    best = min(measured, key=lambda step: measured[step])
    assert 0 < best < best + 2 * patience < STEPS, measured
    return best, best + 2 * patience


def fails_at_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation are complete, and then writing the artifact fails."""
    with monkeypatch.context() as broken:
        broken.setattr(writer, "write", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workflow.run(run)


def test_training_ends_when_evaluations_stop_improving(root: Path) -> None:
    reported: list[Progress] = []
    run, whole = make_run(root), make_run(root, workspace="whole", patience=None)
    outcome = workflow.run(replace(run, report_progress=reported.append))
    workflow.run(whole)

    measured = lines(whole, "eval_loss")
    best, end = end_of(measured)
    assert lines(run, "eval_loss") == {step: loss for step, loss in measured.items() if step <= end}
    assert max(lines(run, "loss")) == end
    assert outcome.metrics["steps"] == str(end)
    assert outcome.message == (
        f"Training completed early at step {end} of {STEPS}: the evaluation loss was no better in the last 2"
        f" evaluations (best: {measured[best]:.4f} at step {best})"
    )
    assert (reported[-1].step, reported[-1].total_steps, reported[-1].percent) == (end, end, 100)
    assert json.loads((run.folders.artifact / "provenance.json").read_text())["stepsPlanned"] == STEPS


@pytest.mark.parametrize("before", [1, 3])
def test_a_resumed_run_ends_at_the_same_step(root: Path, before: int) -> None:
    """The resumed run may do the evaluation that decides."""
    straight = make_run(root, workspace="straight")
    workflow.run(straight)
    _, end = end_of(lines(straight, "eval_loss"))

    with pytest.raises(Preempted):
        workflow.run(tiny.stopped_at(make_run(root), end - before))
    resumed = make_run(root, attempt=2)
    workflow.run(resumed)
    assert lines(resumed, "eval_loss") == lines(straight, "eval_loss")
    assert lines(resumed, "loss") == lines(straight, "loss")
    assert weights(resumed) == weights(straight)


def test_a_run_that_ended_early_trains_no_further_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(root, checkpoints={"everySteps": 2})
    fails_at_the_end(run, monkeypatch)
    _, end = end_of(lines(run, "eval_loss"))
    again = make_run(root, attempt=2, checkpoints={"everySteps": 2})
    outcome = workflow.run(again)
    assert outcome.metrics["steps"] == str(end)
    assert f"early at step {end} of {STEPS}" in outcome.message


def test_the_artifact_has_the_best_weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run that trained them, and in a run that resumes after the last step."""
    run = make_run(root, output={"weights": "best"})
    outcome = workflow.run(run)
    measured = lines(run, "eval_loss")
    best, _ = end_of(measured)
    short = make_run(root, workspace="short", patience=None, steps=best)
    workflow.run(short)

    assert weights(run) == weights(short)
    assert outcome.metrics["weightsStep"] == outcome.metrics["bestEvalStep"] == str(best)
    assert float(outcome.metrics["evalLoss"]) == pytest.approx(measured[best], rel=1e-5)
    assert outcome.message.endswith(f"; the artifact is of step {best}, the best")
    assert json.loads((run.folders.artifact / "provenance.json").read_text())["weightsStep"] == best
    assert (
        f"| weights of step | {best}, which has the lowest evaluation loss |"
        in (run.folders.artifact / "README.md").read_text()
    )

    fails_at_the_end(make_run(root, workspace="again", output={"weights": "best"}), monkeypatch)
    again = make_run(root, workspace="again", attempt=2, output={"weights": "best"})
    assert workflow.run(again).metrics["evalLoss"] == outcome.metrics["evalLoss"]
    assert weights(again) == weights(short)


def test_a_best_evaluation_by_a_later_run_counts(root: Path) -> None:
    """The checkpoint of the first run has no evaluation loss."""
    straight = make_run(root, workspace="straight", output={"weights": "best"})
    workflow.run(straight)
    best, _ = end_of(lines(straight, "eval_loss"))
    with pytest.raises(Preempted, match=f"resumes from step {best} "):
        workflow.run(tiny.stopped_at(make_run(root, output={"weights": "best"}), best - 1))
    resumed = make_run(root, attempt=2, output={"weights": "best"})
    assert workflow.run(resumed).metrics["weightsStep"] == str(best)
    assert weights(resumed) == weights(straight)


def test_two_ranks_with_sharded_weights_end_together(root: Path, forge: Forge) -> None:
    """They stop early, load the best weights and generate answers with them."""
    sharded = {"parallelism": "fsdp", "microBatchSize": 2}
    generate = {"maxNewTokens": 4}
    run = make_run(root, workspace="best", output={"weights": "best"}, generate=generate, training=sharded)
    ranks = fsdp_cpu.train(forge, root, run.job, 2, "best")
    assert [rank.sharded for rank in ranks] == [True, True]
    measured = lines(run, "eval_loss")
    best, end = end_of(measured)
    assert max(measured) == end

    short = make_run(root, workspace="short", patience=None, steps=best, training=sharded)
    fsdp_cpu.train(forge, root, short.job, 2, "short")
    assert weights(run) == weights(short)
    results = json.loads((run.folders.reports / "all_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(measured[best], rel=1e-6)
    assert results["weights_step"] == best
    assert "eval_bleu_4" in results
    assert len((run.folders.reports / "predictions.jsonl").read_text().splitlines()) == 4


def test_a_broken_best_checkpoint_is_replaced_by_the_next_best(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"output": {"weights": "best"}, "checkpoints": {"everySteps": 2, "keep": 9}}
    run = make_run(root, **settings)
    fails_at_the_end(run, monkeypatch)
    measured = lines(run, "eval_loss")
    best, second = sorted(measured, key=lambda step: measured[step])[:2]
    file = run.folders.run_checkpoints / f"checkpoint-{best}" / "adapter_model.safetensors"
    file.write_bytes(bytes([*file.read_bytes()[:-1], 7]))

    outcome = workflow.run(make_run(root, attempt=2, **settings))
    assert outcome.metrics["weightsStep"] == str(second)
    assert "is broken, the next best is loaded: adapter_model.safetensors is not as it was written" in caplog.text


def test_only_a_decrease_by_min_delta_counts_as_better() -> None:
    counters = Counters()
    for step, loss in enumerate([3.0, 2.95, 2.92, 2.85, math.nan], start=1):
        counters.record_evaluation(step, loss, min_delta=0.1)
    assert counters.evaluations_without_improvement == 1  # 2.85 is 0.15 below 3.0, a NaN below nothing
    assert (counters.best_loss, counters.best_step) == (2.85, 4)

    later = Counters()
    later.load_state_dict(json.loads(json.dumps(counters.state_dict())))
    later.record_evaluation(6, 2.8, min_delta=0.1)
    assert later.evaluations_without_improvement == 2
    later.record_evaluation(7, 2.7, min_delta=0.1)
    assert (later.evaluations_without_improvement, later.best_step) == (0, 7)


def test_a_nan_is_not_the_best_evaluation() -> None:
    counters = Counters()
    counters.record_evaluation(1, math.nan)
    counters.record_evaluation(2, 2.0)
    assert (counters.best_loss, counters.best_step) == (2.0, 2)


def test_a_loss_of_zero_ends_training_even_if_it_is_rarely_logged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SftTrainer, "training_step", lambda self, *_, **__: self.step_stats.losses.append(ZERO) or ZERO)
    run = tiny.make_run(root, tiny.job(training={"maxSteps": 60, "logEverySteps": 1000}))
    with pytest.raises(
        Diverged, match="exactly 0 in 50 consecutive steps, the last of them step 50: the model learns nothing"
    ):
        workflow.run(run)


def untrained(_rank: int) -> None:
    """No row has a token to train on."""
    denominators = BaseTrainer.loss_denominators

    def of_nothing(self: BaseTrainer, batch: Batch) -> list[float]:
        batch["labels"].fill_(IGNORED)
        return denominators(self, batch)

    mock.patch.object(BaseTrainer, "loss_denominators", of_nothing).start()


def test_rows_without_a_trained_token_end_all_ranks_with_a_reason(forge: Forge, root: Path, tmp_path: Path) -> None:
    series = Series(forge, root, tmp_path / "untrained", tiny.job(), untrained)
    assert series.run(world=2) == ExitCode.DIVERGED, series.log
    assert series.result.reason == "Diverged"
    assert "Step 1: none of its rows has a token to train on" in series.result.message


def test_the_message_of_a_diverged_step() -> None:
    training = tiny.job().training
    assert "none of its rows has a token to train on" in str(divergence.diverged(training, "bf16", 3, math.nan, 0.0))
    assert "Step 3: the loss is nan. Lower training.learningRate (0.01)" in str(
        divergence.diverged(training, "bf16", 3, math.nan, 5.0)
    )
    assert "Step 3: the gradient is not finite" in str(divergence.diverged(training, "bf16", 3, 1.0, 5.0))


def test_losses_that_are_not_always_zero_are_accepted() -> None:
    of_sft, of_dpo = divergence.ZeroLosses("sft"), divergence.ZeroLosses("dpo")
    for step in range(1, 200):
        of_sft.check(step, 0.0 if step % 50 else 1e-9)
        of_dpo.check(step, 0.0)  # a hinge that no pair is behind of
    with pytest.raises(Diverged):  # the fiftieth in a row
        of_sft.check(200, 0.0)


def test_a_failure_after_the_last_evaluation_closes_trackers_and_repeats_no_evaluation(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(Trackers, "close", lambda _self, done=True, **_: closed.append(done))
    fails_at_the_end(make_run(root, checkpoints={"everySteps": 2}), monkeypatch)
    assert closed == [False]
    run = make_run(root, attempt=2, checkpoints={"everySteps": 2})
    workflow.run(run)
    log = (run.folders.reports / "trainer_log.jsonl").read_text().splitlines()
    measured = [line["current_steps"] for line in map(json.loads, log) if "eval_loss" in line]
    assert measured == sorted(set(measured))
    assert (run.folders.artifact / "provenance.json").is_file()
    assert closed == [False, True]
