"""Preparation of pairs, labelled answers and prompts: samples, cuts, dropped rows, warnings and reports."""

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from finetune_api.data import UNITS
from finetune_trainer.data.datasets import Pairs, Prompts
from finetune_trainer.data.splits import open_split
from finetune_trainer.errors import InvalidData, InvalidSpec
from finetune_trainer.prepare import data_cache, pipeline, worker_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.prepare.test_prepare import TOKENIZER, built, plan
from tests.trainer.support import stages, tiny

REWARD = {"rewardModel": {"source": "pvc://models/reward"}, "maxNewTokens": 40}


def job(stage: str, *names: str, **sections: Any) -> Any:
    """A job whose data sets are the files of these names."""
    datasets = [{"source": f"pvc://data/{name}", "format": stages.FORMATS[stage]} for name in names]
    more = {"ppo": REWARD} if stage == "ppo" else {}
    return tiny.job(**{"stage": stage, "datasets": datasets, **more, **sections})


def pair(number: int, *, prompt: int = 1, chosen: int = 1, rejected: int = 1) -> dict[str, Any]:
    """Pair ``number``. The other arguments: how often the words of its parts are repeated."""
    return {
        "prompt": f"say {number}" + " gamma" * prompt,
        "chosen": " ".join([f"yes {number}"] * chosen),
        "rejected": " ".join([f"no {number}"] * rejected),
    }


def made(asked: Any, folder: Path) -> dict[str, Any]:
    """Built as by the pipeline, in a folder of its own."""
    planned = plan(asked, folder)
    template = planned.tokenization.template
    return built(
        plan(asked, folder, tokenization=worker_pool.Tokenization(TOKENIZER, template, worker_pool.row_limit(asked))),
        folder / "entry",
    )


def texts(pairs: Pairs) -> list[tuple[str, str]]:
    return [tuple(TOKENIZER.decode(row.input_ids) for row in pairs.pair(item)) for item in range(len(pairs))]


COUNT = st.sampled_from([1, 1, 1, 4, 150])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.tuples(COUNT, COUNT, COUNT), min_size=1, max_size=12), min_size=1, max_size=3),
    broken=st.sets(st.integers(0, 11), max_size=3),
    most=st.integers(1, 14) | st.none(),
    mixing=st.sampled_from(["concatenate", "interleaveUnder", "interleaveOver"]),
    fraction=st.sampled_from([None, 0.2, 0.5]),
    seed=st.integers(0, 3),
)
def test_both_rows_of_a_pair_stay_together(
    sizes: list[list[tuple[int, int, int]]],
    broken: set[int],
    most: int | None,
    mixing: str,
    fraction: float | None,
    seed: int,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, number, whole = Path(name), 0, 0
        datasets = []
        for part, rows in enumerate(sizes):
            with (folder / f"{part}.jsonl").open("w") as out:
                for index, (prompt, chosen, rejected) in enumerate(rows):
                    number += 1
                    row = pair(number, prompt=prompt, chosen=chosen, rejected=rejected)
                    out.write(("{" if index in broken else json.dumps(row)) + "\n")
                    whole += index not in broken and prompt < 150
            datasets.append(
                {"source": f"pvc://data/{part}.jsonl", "format": "preference", "maxInvalidRows": 3}
                | ({"maxSamples": most} if most else {})
            )
        evaluation = {"evaluation": {"splitFraction": fraction}} if fraction else {}
        training = {"cutoffLength": 100, "seed": seed}
        asked = job("dpo", datasets=datasets, mixing=mixing, training=training, **evaluation)
        with suppress(InvalidData):  # nothing is left of a data set, or too little to split
            facts = made(asked, folder)
            seen: dict[str, set[str]] = {}
            for split, counts in facts["splits"].items():
                pairs = Pairs(open_split(folder / "entry", split))
                assert len(pairs) == counts["rows"] > 0
                for item in range(len(pairs)):
                    chosen_row, rejected_row = pairs.pair(item)
                    start = chosen_row.answer_start
                    assert chosen_row.input_ids[:start] == rejected_row.input_ids[:start]
                    asked_for = TOKENIZER.decode(chosen_row.input_ids).split("say ")[1].split(" ")[0]
                    assert TOKENIZER.decode(chosen_row.input_ids[start:]).startswith(f"yes {asked_for}")
                    assert TOKENIZER.decode(rejected_row.input_ids[start:]).startswith(f"no {asked_for}")
                    seen.setdefault(split, set()).add(asked_for)
            assert not seen["train"] & seen.get("eval", set())
            if mixing == "concatenate" and most is None:
                assert sum(map(len, seen.values())) == sum(found["kept"] for found in facts["datasets"]) == whole


def test_a_pair_that_lost_an_answer_is_dropped_and_a_shortened_pair_is_kept(tmp_path: Path) -> None:
    rows = [pair(1), pair(2, prompt=150), pair(3, rejected=150), pair(4, chosen=150)]
    stages.save(tmp_path / "pairs.jsonl", rows)
    facts = made(job("rm", "pairs.jsonl", training={"cutoffLength": 100}), tmp_path)
    (found,) = facts["datasets"]
    assert (found["rows"], found["kept"], found["emptied"], found["truncated"]) == (4, 3, 1, 3)
    assert facts["warning"] == (
        "1 of 4 pairs are left out because an answer begins after training.cutoffLength (100 tokens)"
    )
    pairs = Pairs(open_split(tmp_path / "entry", "train"))
    assert pairs.lengths.tolist()[1:] == [100, 100]
    assert [chosen.split("assistant\n")[1] for chosen, _ in texts(pairs)][:2] == ["yes 1<|im_end|>", "yes 3<|im_end|>"]


@pytest.mark.parametrize(("wanted", "what"), [(True, "wanted"), (False, "unwanted")])
def test_equal_labels_cause_a_warning_in_status_and_report(root: Path, wanted: bool, what: str) -> None:
    rows = [{"prompt": f"say {i}", "completion": "alpha", "label": wanted} for i in range(5)]
    stages.save(root / "data" / "answers.jsonl", rows)
    run = tiny.make_run(root, job("kto", "answers.jsonl"))
    summary, report = run.prepared.summary, (run.folders.reports / "prepare.md").read_text()
    said = f"all 5 answers are {what}, and kto learns from the difference: check that the labels are right"
    assert summary.warning == said
    assert f"**Warning:** {said}." in report
    assert pipeline.describe(summary, "kto").startswith("5 answers to train on, ")
    assert pipeline.describe(summary, "kto").endswith(f"Warning: {said}")
    assert f"Wanted: {5 * wanted}; unwanted: {5 * (not wanted)}." in report
    assert f"{what}:\n<|im_start|>user\nsay 0<|im_end|>\n<|im_start|>assistant\n[[alpha<|im_end|>]]" in report


def test_a_prompt_with_the_answer_of_another_row_must_fit_the_model_too(root: Path) -> None:
    rows = [
        {"prompt": "say" + " gamma" * 150, "completion": "alpha", "label": True},
        {"prompt": "say beta", "completion": " gamma" * 150, "label": False},
    ]
    stages.save(root / "data" / "answers.jsonl", rows)
    with pytest.raises(InvalidSpec, match=r"cutoffLength: rows have up to 300 tokens, and the model supports 256"):
        tiny.make_run(root, job("kto", "answers.jsonl", training={"cutoffLength": 300}))
    assert tiny.make_run(root, job("kto", "answers.jsonl", training={"cutoffLength": 256})).prepared.summary.rows == 2


def test_labels_are_kept_with_their_answers_through_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "completion": f"{i} is {i % 3 == 0}", "label": i % 3 == 0} for i in range(40)]
    stages.save(tmp_path / "answers.jsonl", rows)
    facts = made(job("kto", "answers.jsonl", evaluation={"splitFraction": 0.25}), tmp_path)
    assert (facts["warning"], facts["datasets"][0]["unwanted"]) == (None, 26)
    splits = [open_split(tmp_path / "entry", name) for name in ("train", "eval")]
    assert [len(split) for split in splits] == [30, 10]
    for row in (row for split in splits for row in split):
        assert f"is {row.desirable}" in TOKENIZER.decode(row.input_ids)


@pytest.mark.parametrize("format", ["openai", "alpaca", "preference"])
def test_prompts_are_read_from_every_format_and_long_prompts_are_dropped(tmp_path: Path, format: str) -> None:
    asked = ["say alpha", "say beta", "say" + " gamma" * 150]
    rows: dict[str, list[dict[str, Any]]] = {
        "openai": [{"messages": [{"role": "user", "content": text}]} for text in asked],
        "alpaca": [{"instruction": text, "output": ""} for text in asked],
        "preference": [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in asked],
    }
    stages.save(tmp_path / "rows.jsonl", rows[format])
    dataset = {"source": "pvc://data/rows.jsonl", "format": format}
    facts = made(job("ppo", datasets=[dataset], evaluation={"datasets": [dataset]}), tmp_path)
    for split in ("train", "eval"):
        prompts = Prompts(open_split(tmp_path / "entry", split))
        decoded = [TOKENIZER.decode(prompts.prompt(item)) for item in range(len(prompts))]
        assert decoded == [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in asked[:2]]
        assert (facts["splits"][split]["rows"], facts["splits"][split]["trained_tokens"]) == (2, 0)
    assert facts["warning"] == (
        "1 of 3 prompts are left out because they are longer than what training.cutoffLength leaves beside"
        " ppo.maxNewTokens (128 - 40 = 88 tokens)"
    )
    assert facts["datasets"][0]["truncated"] == 0


def test_the_error_for_too_long_prompts_has_the_numbers(tmp_path: Path) -> None:
    stages.save(tmp_path / "rows.jsonl", [stages.row("ppo", 0)])
    with pytest.raises(InvalidData, match=r"all 1 prompts of .* \(41 - 40 = 1 tokens\).* Raise training\.cutoffLength"):
        made(job("ppo", "rows.jsonl", training={"cutoffLength": 41}), tmp_path)


@pytest.mark.parametrize("stage", ["rm", "dpo", "kto", "ppo"])
def test_every_stage_has_its_evaluation_splits(tmp_path: Path, stage: str) -> None:
    for name in ("rows", "one", "two"):
        stages.save(tmp_path / f"{name}.jsonl", [stages.row(stage, index) for index in range(6)])
    held = [{"source": f"pvc://data/{name}.jsonl", "format": stages.FORMATS[stage]} for name in ("one", "two")]
    facts = made(job(stage, "rows.jsonl", evaluation={"datasets": held}), tmp_path)
    assert {name: counts["rows"] for name, counts in facts["splits"].items()} == {"train": 6, "eval-1": 6, "eval-2": 6}
    assert [found["unit"] for found in facts["datasets"]] == [UNITS[stage]] * 3


def test_the_report_counts_pairs_and_shows_a_pair(root: Path) -> None:
    stages.save(root / "data" / "pairs.jsonl", [pair(number, chosen=number) for number in range(1, 5)])
    run = tiny.make_run(root, job("dpo", "pairs.jsonl"))
    report = (run.folders.reports / "prepare.md").read_text()
    assert run.prepared.summary.rows == 4
    assert "| split | pairs | tokens |" in report
    assert "Tokenized pairs: 4; cut at cutoffLength: 0" in report
    for what in ("prompts with the chosen answer", "prompts with the rejected answer", "prompts"):
        assert f"Tokens of {what}:\n" in report
    assert "assistant\n[[yes 1<|im_end|>]]\n\nrejected:\n<|im_start|>user" in report


def test_stages_with_equal_data_share_the_entry() -> None:
    def key(stage: str, **sections: Any) -> str:
        dataset = {"source": "pvc://data/rows.jsonl", "format": "preference"}
        return data_cache.entry_key(job(stage, datasets=[dataset], **sections), ["sha256:1"], "tokenizer", None)

    assert key("rm") == key("dpo") == key("dpo", dpo={"beta": 0.5})
    assert key("ppo") == key("ppo", ppo={**REWARD, "epochs": 2})
    assert len({key("dpo"), key("ppo"), key("ppo", ppo={**REWARD, "maxNewTokens": 41})}) == 3
