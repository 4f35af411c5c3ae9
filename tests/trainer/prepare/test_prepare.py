"""Preparation of real files with a real (tiny) tokenizer: invalid rows, kills, draws, and the cost of a second run."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import ResolvedJob
from finetune_trainer.data.splits import open_split
from finetune_trainer.data.templates.chat_template import ChatTemplate
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.errors import InvalidData, Preempted
from finetune_trainer.fetch import FetchContext, lease
from finetune_trainer.prepare import build_data, data_cache, worker_pool
from finetune_trainer.prepare.build_plan import BuildPlan, DatasetSource, ReadProgress

from tests.trainer.support import tiny

TOKENIZER = tiny.tokenizer()
GOOD = json.dumps(tiny.conversation(0))


def plan(job: ResolvedJob, folder: Path, **more: Any) -> BuildPlan:
    """A plan whose data sets are the files in ``folder`` that have the last part of their source as name."""

    def source(spec: Any) -> DatasetSource:
        return DatasetSource(spec, folder / spec.source.rpartition("/")[2])

    template = ChatTemplate(TOKENIZER, frozenset({TOKENIZER.eos_token_id}), job.template)
    evaluated = (job.evaluation.datasets or []) if job.evaluation else []
    made = BuildPlan(
        job=job,
        train=[source(spec) for spec in job.datasets],
        evaluate=[source(spec) for spec in evaluated],
        tokenization=worker_pool.Tokenization(TOKENIZER, template, job.training.cutoff_length),
        processes=1,
        reports=folder / "reports",
        invalid_rows="the list",
        report_progress=lambda _read: None,
        check_stop=lambda: None,
    )
    return replace(made, **more)


def built(made: BuildPlan, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return build_data.build(made, folder)


def texts(folder: Path, split: str) -> list[str]:
    return [TOKENIZER.decode(row.input_ids) for row in open_split(folder, split)]


def rows(name: str, **more: Any) -> dict[str, Any]:
    return {"source": f"pvc://data/{name}", "format": "openai", **more}


def numbered(file: Path, count: int, word: str = "say") -> None:
    """Rows that differ from each other."""
    with file.open("w") as out:
        for number in range(count):
            messages = [{"role": "user", "content": f"{word} {number}"}, {"role": "assistant", "content": "alpha"}]
            out.write(json.dumps({"messages": messages}) + "\n")


BROKEN = {
    1_000: '{"messages": ',
    30_001: "[1, 2]",
    60_002: '{"prompt": "no messages"}',
    90_003: '{"messages": []}',
    120_004: '{"messages": [{"role": "user", "content": "hello"}]}',
    150_005: '{"messages": [{"role": "robot", "content": "hello"}, {"role": "assistant", "content": "hi"}]}',
    199_999: '{"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "hi"}]}',
}


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.sweep)])
def test_seven_broken_rows_among_many_are_named(tmp_path: Path, count: int) -> None:
    broken = {line * count // 200_000: row for line, row in BROKEN.items()}
    with (tmp_path / "rows.jsonl").open("w") as out:
        out.writelines(broken.get(line, GOOD) + "\n" for line in range(1, count + 1))
    made = plan(tiny.job(datasets=[rows("rows.jsonl")]), tmp_path, processes=2)
    with pytest.raises(InvalidData) as error:
        built(made, tmp_path / "entry")
    message = str(error.value)
    assert message.startswith(f"7 of {count} rows can't be used: rows.jsonl:{min(broken)}: ")
    assert all(f"rows.jsonl:{line}: " in message for line in broken), message
    assert len(message) <= 1024
    assert message.endswith("; all of them are in the list. To leave them out, set datasets.maxInvalidRows to 7")
    listed = (tmp_path / "reports" / build_data.INVALID_ROWS).read_text().splitlines()
    assert [json.loads(line)["place"] for line in listed] == [f"rows.jsonl:{line}" for line in broken]


def test_as_many_broken_rows_as_allowed_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join([GOOD, "{", GOOD, "[]", GOOD]))
    facts = built(plan(tiny.job(datasets=[rows("rows.jsonl", maxInvalidRows=2)]), tmp_path), tmp_path / "entry")
    assert (facts["splits"]["train"]["rows"], facts["datasets"][0]["broken"]) == (3, 2)
    with pytest.raises(InvalidData, match="more than the 1 that maxInvalidRows allows"):
        built(plan(tiny.job(datasets=[rows("rows.jsonl", maxInvalidRows=1)]), tmp_path), tmp_path / "other")


def test_rows_that_lose_every_trained_token_are_left_out_and_counted(tmp_path: Path) -> None:
    long = tiny.conversation(0)
    long["messages"][0]["content"] *= 40
    (tmp_path / "rows.jsonl").write_text(f"{GOOD}\n{json.dumps(long)}\n")
    job = tiny.job(datasets=[rows("rows.jsonl")], training={"cutoffLength": 60})
    facts = built(plan(job, tmp_path), tmp_path / "entry")
    assert (facts["splits"]["train"]["rows"], facts["datasets"][0]["emptied"]) == (1, 1)
    job = tiny.job(datasets=[rows("rows.jsonl")], training={"cutoffLength": 9})
    with pytest.raises(
        InvalidData,
        match=r"all 2 rows of .* are left out because the answer begins after training\.cutoffLength \(9 tokens\)",
    ):
        built(plan(job, tmp_path), tmp_path / "other")


def test_data_without_rows_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(InvalidData, match=r"hold no rows: pvc://data/rows\.jsonl"):
        built(plan(tiny.job(datasets=[rows("rows.jsonl")]), tmp_path), tmp_path / "entry")


def test_the_number_of_processes_does_not_change_a_byte(tmp_path: Path) -> None:
    numbered(tmp_path / "rows.jsonl", 3000)
    job = tiny.job(datasets=[rows("rows.jsonl", maxSamples=2500)], evaluation={"splitFraction": 0.1})
    facts = [built(plan(job, tmp_path, processes=n), tmp_path / f"entry{n}") for n in (1, 2)]
    assert facts[0] == facts[1]
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / f"entry{n}").iterdir()} for n in (1, 2))
    assert one == two


def test_all_rows_of_a_large_file_are_checked_and_only_the_sample_is_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(tmp_path / "rows.jsonl", 3000)
    whole = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*whole[:700], "{", *whole[700:]]))
    tokenized: list[int] = []

    def counted(samples: Any, *rest: Any) -> Any:
        tokenized.append(len(samples))
        return tokenize_batch(samples, *rest)

    monkeypatch.setattr(worker_pool, "tokenize_batch", counted)
    seen: list[ReadProgress] = []
    job = tiny.job(datasets=[rows("rows.jsonl", maxSamples=40, maxInvalidRows=1)])
    facts = built(plan(job, tmp_path, report_progress=seen.append), tmp_path / "entry")
    assert sum(tokenized) == 40
    assert (facts["splits"]["train"]["rows"], facts["datasets"][0]["rows"]) == (40, 3001)
    assert [row[0] for row in facts["datasets"][0]["examples"]] == ["rows.jsonl:701"]
    drawn = texts(tmp_path / "entry", "train")
    assert len(set(drawn)) == 40
    places = [int(text.split("say ")[1].split("<")[0]) for text in drawn]
    assert places == sorted(places)
    assert places[-1] > 2000
    last = {read.activity: read for read in seen}
    size = (tmp_path / "rows.jsonl").stat().st_size
    assert (last["Validating"].rows, last["Tokenizing"].rows) == (3001, 40)
    assert (last["Validating"].size, last["Tokenizing"].size) == (size, size)


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    seen: list[ReadProgress] = []
    for name in ("one", "two"):
        numbered(tmp_path / f"{name}.jsonl", 1500, name)
    job = tiny.job(datasets=[rows("one.jsonl"), rows("two.jsonl")])
    built(plan(job, tmp_path, report_progress=seen.append), tmp_path / "entry")
    total = sum((tmp_path / f"{name}.jsonl").stat().st_size for name in ("one", "two"))
    assert {read.total for read in seen} == {total}
    assert [read.size for read in seen] == sorted(read.size for read in seen)
    assert (seen[-1].size, seen[-1].rows) == (total, 3000)
    assert 0 < seen[0].size < total


def test_rows_for_evaluation_are_not_trained(tmp_path: Path) -> None:
    numbered(tmp_path / "rows.jsonl", 300)
    job = tiny.job(datasets=[rows("rows.jsonl", maxSamples=200)], evaluation={"splitFraction": 0.25})
    built(plan(job, tmp_path), tmp_path / "entry")
    train, evaluated = (set(texts(tmp_path / "entry", split)) for split in ("train", "eval"))
    assert (len(train), len(evaluated)) == (150, 50)
    assert not train & evaluated


def test_evaluation_has_its_own_data_sets(tmp_path: Path) -> None:
    for name in ("rows", "one", "two"):
        numbered(tmp_path / f"{name}.jsonl", 5, name)
    evaluation = {"datasets": [rows("one.jsonl"), rows("two.jsonl", maxSamples=2)]}
    job = tiny.job(datasets=[rows("rows.jsonl")], evaluation=evaluation)
    facts = built(plan(job, tmp_path), tmp_path / "entry")
    assert {name: split["rows"] for name, split in facts["splits"].items()} == {"train": 5, "eval-1": 5, "eval-2": 2}
    assert all("two" in text for text in texts(tmp_path / "entry", "eval-2"))


def test_data_sets_are_mixed_by_weight(tmp_path: Path) -> None:
    numbered(tmp_path / "many.jsonl", 2000, "many")
    numbered(tmp_path / "few.jsonl", 100, "few")
    datasets = [rows("many.jsonl", weight=4), rows("few.jsonl", weight=1)]
    built(plan(tiny.job(datasets=datasets, mixing="interleaveUnder"), tmp_path), tmp_path / "entry")
    mixed = texts(tmp_path / "entry", "train")
    assert sum("few" in text for text in mixed) == 100
    assert 300 < sum("many" in text for text in mixed) < 520


def test_a_stop_is_noticed_while_reading(tmp_path: Path) -> None:
    def stop() -> None:
        raise Preempted("stop")

    numbered(tmp_path / "rows.jsonl", 5)
    for processes in (1, 2):
        made = plan(tiny.job(datasets=[rows("rows.jsonl")]), tmp_path, check_stop=stop, processes=processes)
        with pytest.raises(Preempted):
            built(made, tmp_path / f"entry{processes}")


def entry(made: BuildPlan, home: Path, run: str) -> tuple[str, bool]:
    """(digest, whether it was cached)."""
    key = data_cache.entry_key(made.job, ["sha256:1"], "tokenizer", None)
    places = FetchContext(home / "cache", {}, home, run)
    _, manifest, hit = data_cache.get_or_build(places, key, lambda folder: build_data.build(made, folder), lambda: None)
    return manifest["digest"], hit


def test_after_a_kill_at_any_moment_the_next_run_ends_with_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "POLL_INTERVAL", 0.02)
    numbered(tmp_path / "rows.jsonl", 4000)
    job = tiny.job(datasets=[rows("rows.jsonl")], evaluation={"splitFraction": 0.1}, training={"packing": "bfd"})
    made = plan(job, tmp_path)
    (tmp_path / "whole").mkdir()
    began = time.monotonic()
    whole, hit = entry(made, tmp_path / "whole", "whole")
    took = time.monotonic() - began
    assert not hit

    home, draw = tmp_path / "killed", random.Random(7)
    home.mkdir()
    for kill in range(20):
        child = os.fork()
        if child == 0:
            try:
                entry(made, home, f"run-{kill}")
            finally:
                os._exit(0)
        # Of many moments, some hit the last steps, where it matters most.
        time.sleep(took * draw.uniform(0.02, 1.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert entry(made, home, "last")[0] == whole
    assert entry(made, home, "again") == (whole, True)
    assert not list((home / "cache" / "data").glob(".staging-*"))


def test_invalid_rows_are_listed_for_every_job(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join([GOOD, "{", GOOD]))
    job = tiny.job(datasets=[rows("rows.jsonl", maxInvalidRows=1)])
    entry(plan(job, tmp_path), tmp_path, "one")
    (made,) = (tmp_path / "cache" / "data").glob("[!.]*")
    first, second = tmp_path / "reports", tmp_path / "second" / "reports"
    assert entry(plan(job, tmp_path, reports=second), tmp_path, "two")[1]
    build_data.copy_invalid_rows(made, second)
    (listed,) = (second / build_data.INVALID_ROWS).read_text().splitlines()
    assert json.loads(listed)["place"] == "rows.jsonl:2"
    assert (first / build_data.INVALID_ROWS).read_text().splitlines() == [listed]
    # What an earlier attempt left there says nothing of data that has no broken rows.
    (made / build_data.INVALID_ROWS).unlink()
    build_data.copy_invalid_rows(made, second)
    assert (second / build_data.INVALID_ROWS).read_text() == ""


def test_a_job_with_cached_data_lists_the_invalid_rows_too(root: Path) -> None:
    with (root / "data" / "rows.jsonl").open("a") as data:
        data.write("{\n")
    job = tiny.job(datasets=[rows("rows.jsonl", maxInvalidRows=1)])
    first = tiny.make_run(root, job).folders
    second = tiny.make_run(root, job.model_copy(update={"name": "other"})).folders
    assert first.reports != second.reports
    lists = [(folders.reports / build_data.INVALID_ROWS).read_text() for folders in (first, second)]
    assert lists[0] == lists[1]
    assert json.loads(lists[0])["place"] == "rows.jsonl:25"


def test_a_damaged_entry_is_built_again(tmp_path: Path) -> None:
    numbered(tmp_path / "rows.jsonl", 20)
    made = plan(tiny.job(datasets=[rows("rows.jsonl")]), tmp_path)
    digest, _ = entry(made, tmp_path, "one")
    (shard,) = (tmp_path / "cache" / "data").glob("*/train-00000.arrow")
    shard.write_bytes(shard.read_bytes()[:100])
    assert entry(made, tmp_path, "two") == (digest, False)


def test_the_key_depends_on_everything_that_decides_the_rows(tmp_path: Path) -> None:
    def key(digest: str = "sha256:1", **sections: Any) -> str:
        return data_cache.entry_key(tiny.job(**sections), [digest], "tokenizer", None)

    assert key() == key(training={"learningRate": 0.5, "maxSteps": 9}) == key(tuning={"method": "full"})
    others = [
        key("sha256:2"),
        key(training={"seed": 1}),
        key(training={"cutoffLength": 64}),
        key(training={"packing": "bfd"}),
        key(evaluation={"splitFraction": 0.1}),
        key(template={"history": "lastTurn"}),
    ]
    assert len({key(), *others}) == len(others) + 1
