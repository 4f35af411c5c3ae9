"""Stage sft: answers to held-out prompts after training, their metrics and their file, on any number of ranks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.data.row import Row
from finetune_trainer.errors import Preempted
from finetune_trainer.generation import batched
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import held_out, text_metrics, workflow

from tests.trainer.support import tiny

METRICS = ("bleu_4", "rouge_1", "rouge_2", "rouge_l", "exact_match")


def make_run(root: Path, *, attempt: int = 1, asked: dict[str, Any] | None = None, **training: Any) -> Run:
    """Held-out rows that resemble the trained rows, so that some answers are right."""
    tiny.save_rows(root / "data" / "held.jsonl", rows=9)
    job = tiny.job(
        evaluation={
            "datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}],
            "generate": {"maxNewTokens": 16, **(asked or {})},
        },
        tuning={"method": "full"},
        training={"maxSteps": 60, "logEverySteps": 20, "learningRate": 0.01, **training},
    )
    return tiny.make_run(root, job, attempt=attempt)


def predictions(run: Run) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run.folders.reports / "predictions.jsonl").read_text().splitlines()]


def answered_by_hand(run: Run, prompt: str) -> str:
    """The answers of the artifact, as a user gets them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens: Any = AutoTokenizer.from_pretrained(run.folders.artifact)
    model: Any = AutoModelForCausalLM.from_pretrained(run.folders.artifact)
    ids = torch.tensor([tokens(prompt, add_special_tokens=False)["input_ids"]])
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    return str(tokens.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_the_trained_model_answers_held_out_prompts(root: Path) -> None:
    run = make_run(root)
    outcome = workflow.run(run)
    lines = predictions(run)
    asked = [tiny.conversation(index)["messages"] for index in range(9)]
    assert [line["label"] for line in lines] == [answer["content"] for _, answer in asked]
    assert [line["prompt"] for line in lines] == [
        f"<|im_start|>user\n{question['content']}<|im_end|>\n<|im_start|>assistant\n" for question, _ in asked
    ]
    assert [line["predict"] for line in lines] == [answered_by_hand(run, line["prompt"]) for line in lines]
    assert any(line["predict"] == line["label"] for line in lines)

    measured = text_metrics.text_metrics([line["predict"] for line in lines], [line["label"] for line in lines])
    results = json.loads((run.folders.reports / "eval_results.json").read_text())
    assert {name: results[f"eval_{name}"] for name in METRICS} == pytest.approx(measured)
    assert float(outcome.metrics["evalExactMatch"]) == pytest.approx(measured["exact_match"], rel=1e-5)
    assert tiny.logged(run, "eval_bleu_4") == [pytest.approx(measured["bleu_4"])]
    assert "| evaluation: exact_match |" in (run.folders.artifact / "README.md").read_text()


def test_a_run_that_is_stopped_leaves_the_answers_to_the_next(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = False
    answers = batched.generate

    def stopped_meanwhile(*args: Any, **settings: Any) -> Any:
        nonlocal stop
        stop = True
        return answers(*args, **settings)

    run = make_run(root, maxSteps=2, microBatchSize=1)
    with monkeypatch.context() as patched:
        patched.setattr(batched, "generate", stopped_meanwhile)
        with pytest.raises(Preempted, match="resumes from step 2"):
            workflow.run(replace(run, stop_requested=lambda: stop))
    assert not (run.folders.reports / "predictions.jsonl").exists()
    again = make_run(root, attempt=2, maxSteps=2, microBatchSize=1)
    assert "evalBleu4" in workflow.run(again).metrics
    assert len(predictions(again)) == 9


def test_at_most_max_rows_are_answered(root: Path) -> None:
    run = make_run(root, asked={"maxRows": 4}, maxSteps=1)
    workflow.run(run)
    assert len(predictions(run)) == 4


def test_a_prompt_that_leaves_little_room_cuts_no_other_answer_short(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any batch size: the model has three positions more than the longest prompt."""
    rows = [tiny.conversation(index) for index in range(5)]
    rows[2]["messages"][0]["content"] = " ".join(tiny.WORDS * 4)
    (root / "data" / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = tiny.tokenizer().apply_chat_template(rows[2]["messages"][:1], add_generation_prompt=True, tokenize=False)
    longest = len(tiny.tokenizer()(asked)["input_ids"])
    tiny.save_model(root / "data" / "short", max_position_embeddings=longest + 3)
    limits: dict[int, int] = {}
    answers = batched.generate

    def noted(model: Any, prompts: list[list[int]], **settings: Any) -> Any:
        limits.update({len(prompt): settings["max_new_tokens"] for prompt in prompts})
        return answers(model, prompts, **settings)

    monkeypatch.setattr(batched, "generate", noted)
    found = []
    for micro in (4, 1):
        job = tiny.job(
            evaluation={
                "datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}],
                "generate": {"maxNewTokens": 12},
            },
            model={"source": "pvc://data/short"},
            training={"maxSteps": 1, "microBatchSize": micro, "cutoffLength": longest + 3},
        )
        run = tiny.make_run(root, job, workspace=f"by-{micro}")
        workflow.run(run)
        found.append([line["predict"] for line in predictions(run)])
        assert limits.pop(longest) == 3
        assert set(limits.values()) == {12}
    assert found[0] == found[1]


def test_the_question_of_a_row_is_for_its_last_answer() -> None:
    assert held_out.question_of(Row([1, 2, 3, 4, 5, 6], [(1, 2), (4, 6)])) == ([1, 2, 3, 4], [5, 6])
    assert held_out.question_of(Row([1, 2, 3], [(0, 3)])) is None  # all of it is trained: there is no prompt
    assert held_out.question_of(Row([1, 2, 3], [])) is None


def test_an_adapter_answers_with_modules_that_are_trained_whole(root: Path) -> None:
    """These modules are in fp32, and their inputs are in bf16."""
    tiny.save_rows(root / "data" / "held.jsonl", rows=3)
    job = tiny.job(
        evaluation={
            "datasets": [{"source": "pvc://data/held.jsonl", "format": "openai"}],
            "generate": {"maxNewTokens": 4},
        },
        model={"source": "pvc://models/model", "newTokens": ["unheard"]},
        tuning={"method": "lora"},
        training={"maxSteps": 1, "precision": "bf16"},
    )
    run = tiny.make_run(root, job)
    workflow.run(run)
    assert len(predictions(run)) == 3
