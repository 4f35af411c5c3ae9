"""The report and the status say what of the data is not used, what is left out, and how many packs result."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import InvalidData, InvalidSpec
from finetune_trainer.prepare.pipeline import describe
from finetune_trainer.run import Run
from transformers import AutoTokenizer

from tests.trainer.prepare.test_prepare import rows
from tests.trainer.support import tiny

WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save(root: Path, *made: dict[str, Any]) -> None:
    (root / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def report(run: Run) -> tuple[dict[str, Any], str]:
    return (
        json.loads((run.folders.reports / "prepare.json").read_text()),
        (run.folders.reports / "prepare.md").read_text(),
    )


def test_unused_columns_and_keys_are_in_report_and_status(root: Path) -> None:
    made = [tiny.conversation(number) | {"id": f"row-{number}"} for number in range(24)]
    made[3]["messages"][1]["train"] = False
    save(root, *made)
    run = tiny.make_run(root, tiny.job(training={"packing": "bfd"}))
    summary = run.prepared.summary
    assert summary.not_used == "id (24 rows), messages[].train (1 rows)"
    assert summary.warning == "not used although it may matter: messages[].train (1 rows)"
    content, text = report(run)
    assert content["datasets"][0]["not_used"] == {"id": 24, "messages[].train": 1}
    assert "| id | 24 |" in text
    assert summary.packs == content["splits"]["train"]["packs"]
    assert summary.packs is not None
    assert 0 < summary.packs < 24
    assert f"| {summary.packs} |" in text
    assert f"24 rows to train on in {summary.packs} packs" in describe(summary, "sft")
    assert "Not used: id (24 rows)" in describe(summary, "sft")


def test_without_packing_and_without_other_columns_there_is_nothing_to_say(root: Path) -> None:
    summary = tiny.make_run(root, tiny.job()).prepared.summary
    assert (summary.not_used, summary.packs, summary.left_out_rows, summary.warning) == (None, None, None, None)


def pair(number: int, common: int) -> dict[str, Any]:
    return {"prompt": f"say {number}", "chosen": "alpha " * common + "beta", "rejected": "alpha " * common + "gamma"}


def dpo(cutoff: int = 32) -> Any:
    datasets = [rows("rows.jsonl", format="preference")]
    return tiny.job(stage="dpo", datasets=datasets, training={"cutoffLength": cutoff})


def test_pairs_that_the_cut_makes_alike_are_left_out_with_a_warning(root: Path) -> None:
    save(root, pair(1, 1), pair(2, 40), pair(3, 2))
    run = tiny.make_run(root, dpo())
    summary = run.prepared.summary
    warning = "1 of 3 pairs are left out because training.cutoffLength ends before their answers differ"
    assert (summary.rows, summary.left_out_rows, summary.warning) == (2, 1, warning)
    content, text = report(run)
    assert (content["datasets"][0]["alike"], content["datasets"][0]["emptied"]) == (1, 0)
    assert "cutoffLength ends before their answers differ: 1." in text


def test_data_of_which_nothing_is_left_has_a_report_too(root: Path) -> None:
    save(root, pair(1, 40), pair(2, 40))
    with pytest.raises(InvalidData, match=r"all 2 pairs .*before their answers differ.* or shorten the answers"):
        tiny.make_run(root, dpo())
    (written,) = root.glob("work/jobs/*/reports/prepare.json")
    assert json.loads(written.read_text())["datasets"][0]["alike"] == 2


def test_held_out_pairs_are_compared_too(root: Path) -> None:
    save(root, *[pair(number, 1) for number in range(8)])
    (root / "data" / "other.jsonl").write_text("\n".join(json.dumps(pair(9, common)) for common in (1, 40)))
    evaluation = {"datasets": [rows("other.jsonl", format="preference")]}
    job = tiny.job(
        stage="dpo",
        datasets=[rows("rows.jsonl", format="preference")],
        evaluation=evaluation,
        training={"cutoffLength": 32},
    )
    assert tiny.make_run(root, job).prepared.summary.evaluation_rows == 1


def test_a_tokenizer_with_a_template_for_tools_prepares_rows_with_and_without_tools(root: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(root / "models" / "model")
    tokenizer.chat_template = {"default": tiny.CHATML, "tool_use": WITH_TOOLS}
    tokenizer.save_pretrained(root / "models" / "model")
    call = {"id": "c1", "function": {"name": "rain", "arguments": {"city": "Graz"}}}
    messages = [{"role": "user", "content": "rain"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    save(root, tiny.conversation(0), {"messages": messages, "tools": [{"name": "rain"}]})
    run = tiny.make_run(root, tiny.job())
    assert run.prepared.summary.rows == 2
    assert set(run.prepared.template["withTools"]) == {"mask", "digest", "maskDigest"}


def test_a_default_system_message_that_the_template_refuses_is_named(root: Path) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHATML
    (root / "models" / "model" / "chat_template.jinja").write_text(refuses)
    with pytest.raises(InvalidSpec, match=r"^template\.defaultSystem: the chat template rejects it: no system"):
        tiny.make_run(root, tiny.job(template={"defaultSystem": "be brief"}))
