"""Names of metrics, plots and the model card, for all stages."""

from pathlib import Path
from typing import Any, get_args

import pytest
from finetune_api.contract import ResolvedJob
from finetune_api.stages import Stage
from finetune_api.status import Prepared, Result
from finetune_trainer.artifact import model_card
from finetune_trainer.reporting import metrics, names, plots, progress
from finetune_trainer.reporting.counters import Counters

from tests.trainer.support import tiny

DPO = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
METRICS: dict[str, tuple[str, ...]] = {
    "pt": ("accuracy",),
    "sft": ("accuracy",),
    "rm": ("accuracy", "margin", "mean_reward", "min_reward", "max_reward"),
    "dpo": (*DPO, "sft_loss", "odds_ratio_loss"),
    "kto": (*DPO, "sft_loss", "kl"),
    "ppo": (
        *("reward", "reward_normalized", "kl", "kl_coefficient", "policy_loss", "value_loss", "clip_fraction"),
        *("entropy", "answer_length", "eos_rate"),
    ),
}


def history(stage: str, evaluated: bool) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"step": step, "epoch": step / 4, "loss": 4.0 - step, "learning_rate": 0.1, "grad_norm": 1.0}
        | {name: step + at for at, name in enumerate(METRICS[stage])}
        for step in (1, 2, 3)
    ]
    last = {"step": 3, "eval_loss": 2.5} | {f"eval_{name}": 10 + at for at, name in enumerate(METRICS[stage])}
    return [*lines, last] if evaluated else lines


def final(stage: str, evaluated: bool) -> dict[str, float]:
    entries = history(stage, evaluated)
    evaluation = {name: value for name, value in entries[-1].items() if name.startswith("eval_")}
    data = Prepared(digest="sha256:0", rows=8, tokens=80, trained_tokens=40)
    return metrics.final(entries, Counters(tokens=240), data, 8, evaluation)


@pytest.mark.parametrize("stage", get_args(Stage))
@pytest.mark.parametrize("evaluated", [True, False])
def test_status_has_the_metrics_of_each_stage(stage: str, evaluated: bool) -> None:
    selected = metrics.for_status(final(stage, evaluated))
    prefix, values = ("eval", range(10, 30)) if evaluated else ("final", range(3, 30))
    for name, value in zip(METRICS[stage], values, strict=False):
        assert selected[prefix + names.LOGGED[name]] == str(value)
    assert selected["trainLoss"] == "2"
    assert selected["finalLoss"] == "1"
    most = 32
    assert len(selected) + 4 <= most  # perplexity, best loss and step, weights' step, GPU memory
    Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="", metrics=selected)


@pytest.mark.parametrize("stage", get_args(Stage))
def test_each_metric_has_a_plot(stage: str, tmp_path: Path) -> None:
    plots.write(tmp_path, history(stage, evaluated=True))
    names = {"loss", *(name.replace("/", "_") for name in METRICS[stage])}
    expected = {f"training_{prefix}{name}.png" for name in names for prefix in ("", "eval_")}
    expected |= {"training_learning_rate.png", "training_grad_norm.png"}
    assert {file.name for file in tmp_path.iterdir()} == expected
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.iterdir())


def test_the_log_has_accuracy_under_its_common_name() -> None:
    assert progress.with_aliases({"rewards/accuracies": 0.5}) == {"rewards/accuracies": 0.5, "accuracy": 0.5}
    assert progress.with_aliases({"eval_rewards/accuracies": 0.5}, "eval_")["eval_accuracy"] == 0.5
    assert progress.with_aliases({"loss": 1.0}) == {"loss": 1.0}


def provenance(job: ResolvedJob, **more: Any) -> dict[str, Any]:
    named = {"source": job.model.source, "digest": "sha256:base"}
    return {
        "namespace": "default",
        "precision": "bf16",
        "model": named,
        "adapter": None,
        "reference": None,
        "rewardModel": None,
        "references": [],
        "template": {"stopIds": [2, 7]},
        "settled": {},
        "adapters": [{"folder": ".", "scores": job.stage == "rm", "embeddings": 0}],
        "data": [{"source": "pvc://data/rows.jsonl", "digest": "sha256:rows"}],
        "stepsPlanned": 3,
        "weightsStep": 3,
        **more,
    }


def render(stage: str, kind: str = "adapter", **more: Any) -> str:
    job = tiny.job(training={"maxSteps": 3}).model_copy(update={"stage": stage})
    return model_card.render(job, kind, provenance(job, **more), final(stage, evaluated=True))


def test_the_card_of_a_reward_model_shows_how_to_score() -> None:
    card = render("rm")
    assert "A LoRA adapter that scores answers" in card
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)" in card
    assert "token in [2, 7]" in card
    assert "| evaluation: accuracy | 10 |" in card
    assert 'AutoModelForSequenceClassification.from_pretrained(".")' in render("rm", "model", adapters=None)


def test_the_card_of_a_policy_names_the_models_of_its_training() -> None:
    artifact = {"uri": "pvc://other/jobs/judge/artifact", "digest": "sha256:judge"}
    judge = {"use": "rewardModel", "job": "judge", "uid": "u-1", "stage": "rm", "artifact": artifact}
    reward = {"source": artifact["uri"], "digest": "sha256:judge"}
    card = render("ppo", references=[judge], rewardModel=reward)
    assert "AutoModelForCausalLM" in card
    assert "| reward model | `pvc://other/jobs/judge/artifact` | `sha256:judge` |" in card
    assert "| rewardModel | `judge` (rm, uid u-1) | `sha256:judge` |" in card


def test_the_card_describes_the_tokenizer() -> None:
    job = tiny.job(
        model={"source": "pvc://models/model", "newTokens": ["<new>"]},
        template={"name": "chatml"},
        training={"maxSteps": 3},
    )
    card = model_card.render(job, "adapter", provenance(job), final("sft", evaluated=True))
    assert "The tokenizer is that of the base model, with new tokens and the chat template `chatml`." in card
    assert "The tokenizer is that of the base model.\n" in render("sft")


def test_the_card_shows_effective_settings() -> None:
    spec = {"rewardModel": {"source": "pvc://models/reward"}, "maxNewTokens": 8}
    job = tiny.job(stage="ppo", ppo=spec, training={"maxSteps": 3})

    def card(normalization: str) -> str:
        known = provenance(job, settled={"rewardNormalization": normalization})
        return model_card.render(job, "adapter", known, final("ppo", evaluated=True))

    assert "| ppo.rewardNormalization | running (the job says model) |" in card("running")
    assert "| ppo.rewardNormalization | model |" in card("model")


def test_the_card_names_the_step_of_the_weights() -> None:
    assert "| weights of step | 2, which has the lowest evaluation loss |" in render("sft", weightsStep=2)
    assert "weights of step" not in render("sft")
    assert "| steps | 3 of 9 |" in render("sft", stepsPlanned=9)
