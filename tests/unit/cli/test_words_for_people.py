"""What the command line says about a job: why, the timeline, trees, starters, and flags."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from finetune_api.job import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Reason
from finetune_cli import flags, manifest, starter, timeline, tree, views
from finetune_cli.problem import Problem
from finetune_cli.turns import TURNS
from finetune_cli.why import explain, paragraph

NOW = datetime(2026, 1, 31, 13, 0, 0, tzinfo=UTC)


def job(
    name: str = "a", phase: str = "Running", reason: str = "", spec: dict[str, Any] | None = None, **status: Any
) -> Any:
    begun = "2026-01-31T12:00:00Z"
    condition = {
        "type": phase,
        "status": "True",
        "lastTransitionTime": "2026-01-31T12:30:00Z",
        "reason": reason or phase,
    }
    return {
        "metadata": {"name": name, "namespace": "n", "uid": name, "creationTimestamp": begun, "generation": 1},
        "spec": {"stage": "sft", "model": {"source": "hf://a/b"}, "datasets": [], **(spec or {})},
        "status": {
            "phase": phase,
            "reason": reason,
            "observedGeneration": 1,
            "conditions": [{**condition, "message": ""}],
            **status,
        },
    }


def test_the_list_has_the_queues_of_jobs_if_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    views.show_list([job("plain")])
    assert "QUEUE" not in capsys.readouterr().out
    preset = {"presets": {"source": "s", "filled": {"queue": "of-the-team"}}}
    views.show_list([job("plain"), job("own", spec={"queue": "mine"}), job("filled", resolved=preset)], everywhere=True)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "QUEUE"
    assert [row[header.index("QUEUE") :] for row in rows] == ["", "mine", "of-the-team"]


def test_every_reason_of_the_api_has_a_turn() -> None:
    assert set(TURNS) - {""} == {reason.value for reason in Reason}


def test_why_says_state_time_turn_and_advice() -> None:
    failed = job(phase="Failed", reason="InvalidData", message="1 of 48 rows can't be used: a.jsonl:7: no answer")
    text = paragraph(failed, NOW)
    assert text.startswith("a failed 30m ago (InvalidData). 1 of 48 rows can't be used: a.jsonl:7: no answer.")
    assert "It is your turn." in text
    assert "finetune retry a" in text


def test_why_of_a_running_job_has_its_progress() -> None:
    progress = {"summary": "5/10 (50%)", "loss": "0.5", "eta": "3m", "lastUpdateTime": "2026-01-31T12:59:50Z"}
    text = paragraph(job(progress=progress), NOW)
    assert text == (
        "a is Running for 30m. Training: 5/10 (50%), loss 0.5, 3m to go (reported 10s ago). It is the trainer's turn."
    )


def test_why_waits_for_the_operator_after_a_change() -> None:
    changed = job(phase="Suspended", reason="SuspendedByUser")
    changed["metadata"]["generation"] = 2
    assert explain(changed, NOW)["turn"] == "the operator"


def test_a_timeline_has_attempts_with_their_ends_in_order() -> None:
    attempts = [
        {
            "number": 1,
            "job": "a-1",
            "state": "Ended",
            "startTime": "2026-01-31T12:01:00Z",
            "runningTime": "2026-01-31T12:02:00Z",
            "endTime": "2026-01-31T12:03:00Z",
            "reason": "GPUOutOfMemory",
            "exitCode": 71,
            "message": "too large",
        }
    ]
    entries = timeline.timeline(job(attempts=attempts))
    assert [entry.what for entry in entries] == [
        "Created",
        "Training attempt 1 created",
        "Training attempt 1 runs",
        "Training attempt 1 ended (GPUOutOfMemory, exit code 71)",
        "Running (Running)",
    ]


def chain() -> list[Any]:
    ppo = {"stage": "ppo", "model": {"fromJob": "sft"}, "ppo": {"rewardModel": {"fromJob": "rm"}}}
    return [
        job("sft", "Succeeded"),
        job("rm", "Failed", spec={"stage": "rm", "model": {"fromJob": "sft"}}),
        job("ppo", "Pending", spec=ppo),
        job("other"),
    ]


def test_a_tree_shows_who_uses_whose_artifact() -> None:
    assert tree.draw(tree.related(chain(), "rm")) == [
        "sft  sft  Succeeded",
        "├─ rm  rm  Failed  uses it as model",
        "│  └─ ppo  ppo  Pending  uses it as reward model",
        "└─ ppo  ppo  Pending  uses it as model  (see above)",
    ]


def test_a_tree_ends_where_jobs_wait_for_each_other() -> None:
    circle = [job("a", spec={"model": {"fromJob": "b"}}), job("b", spec={"model": {"fromJob": "a"}})]
    assert tree.draw(circle)[0].startswith("a  ")


@pytest.mark.parametrize("stage", starter.STAGES)
def test_a_starter_is_a_valid_job_and_names_every_field(stage: str) -> None:
    text = starter.commented(stage, "my-job")
    document = yaml.safe_load(text)
    FineTuneJob.model_validate(document, by_name=False)
    assert document == starter.filled(stage, "my-job")
    others = {"rm", "dpo", "kto", "ppo"} - {stage}
    fields = {info.alias or name for name, info in FineTuneJobSpec.model_fields.items()} - others
    lines = {line.strip(" #").partition(":")[0] for line in text.splitlines()}
    assert fields <= lines
    assert not others & {line.strip(" #") for line in text.splitlines()}


def test_flags_become_a_job() -> None:
    made = flags.job_of(
        stage="ppo",
        model="hf://Qwen/Qwen3-4B@main",
        from_job=None,
        datasets=["pvc://data/a.jsonl=openai"],
        tuning="lora",
        reward_model="my-rm",
        settings=["training.learningRate=2e-5", "tuning.lora.rank=16", "tuning.lora.targets=[q_proj, v_proj]"],
    )
    assert manifest.mistakes(made) == []
    assert made["metadata"]["name"].startswith("ppo-qwen3-4b-")
    assert made["spec"]["training"] == {"epochs": 1, "learningRate": 2e-5}
    assert made["spec"]["tuning"] == {"method": "lora", "lora": {"rank": 16, "targets": ["q_proj", "v_proj"]}}
    assert made["spec"]["ppo"] == {"rewardModel": {"fromJob": "my-rm"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": None}, "exactly one of --model and --from-job"),
        ({"datasets": []}, "--dataset SOURCE=FORMAT"),
        ({"datasets": ["pvc://a/b"]}, "name the format of the rows"),
        ({"epochs": 1.0, "max_steps": 3}, "remove one of them"),
        ({"settings": ["training.seed"]}, "write FIELD=VALUE"),
    ],
)
def test_a_wrong_flag_says_what_to_write(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"stage": "sft", "model": "hf://a/b", "from_job": None, "datasets": ["pvc://a/b=alpaca"]}
    with pytest.raises(Problem, match=words):
        flags.job_of(**{**given, **change})


def test_mistakes_name_the_field_to_use() -> None:
    wrong = starter.filled("sft", "a")
    wrong["spec"]["training"] = {"num_train_epochs": 3}
    found = manifest.mistakes(wrong)
    assert "spec.training.num_train_epochs: unknown field; use spec.training.epochs" in found


@pytest.mark.parametrize("source", ["Qwen/Qwen3-4B", "./rows.jsonl", "https://host/rows.jsonl"])
def test_a_wrong_source_is_answered_with_those_that_exist(source: str) -> None:
    wrong = starter.filled("sft", "a")
    wrong["spec"]["model"] = {"source": source}
    (found,) = manifest.mistakes(wrong)
    assert found.startswith(f'spec.model.source: "{source}" given; a source is hf://org/name, pvc://claim/path')
    assert "^" not in found
