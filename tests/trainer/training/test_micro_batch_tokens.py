"""Training with training.microBatchTokens: what each rank holds in each step."""

import json
from pathlib import Path

from finetune_trainer.data.splits import open_split
from finetune_trainer.prepare.limit_check import longest_sample

from tests.trainer.support import stages, tiny
from tests.trainer.support.attempt import Rows, Series
from tests.trainer.support.forge import Forge

STEPS = 6


def test_no_micro_batch_exceeds_the_tokens_and_ranks_have_as_many(forge: Forge, root: Path, tmp_path: Path) -> None:
    """Steps have different numbers of micro-batches: as few as their rows need."""
    job = tiny.job(training={"maxSteps": STEPS, "microBatchTokens": 75, "microBatchSize": None})
    series = Series(forge, root, tmp_path / "series", job)
    assert series.run(world=2) == 0, series.log
    assert "micro-batch: 75 tokens" in series.log
    steps: dict[int, dict[int, list[int]]] = {}
    rows: dict[int, int] = {}
    for event in series.events(Rows):
        sizes = [sum(len(row) for row in batch) for batch in event.batches]
        steps.setdefault(event.step, {})[event.rank] = sizes
        rows[event.step] = rows.get(event.step, 0) + sum(len(batch) for batch in event.batches)
    assert set(rows.values()) == {job.training.global_batch_size}
    assert sorted(steps) == list(range(1, STEPS + 1))
    for by_rank in steps.values():
        assert len(by_rank[0]) == len(by_rank[1])
        assert max(size for sizes in by_rank.values() for size in sizes) <= 75
    assert len({len(by_rank[0]) for by_rank in steps.values()}) > 1


def test_fewer_tokens_than_the_longest_row_are_as_many_as_it_has(root: Path) -> None:
    """The report of prepare says so, and the longest row is a micro-batch of its own."""
    run = tiny.make_run(root, tiny.job(training={"maxSteps": 2, "microBatchTokens": 8, "microBatchSize": None}))
    longest = int(open_split(run.prepared.data, "train").lengths.max())
    assert run.prepared.summary.longest_row == longest > 8
    report = (run.folders.reports / "prepare.md").read_text()
    assert f"training.microBatchTokens is 8, and the longest row has {longest} tokens." in report
    stages.train(run)
    assert len(tiny.losses(run)) == 2
    provenance = json.loads((run.folders.artifact / "provenance.json").read_text())
    assert (provenance["microBatchTokens"], provenance["microBatchSize"]) == (8, None)


def test_the_longest_sample_is_a_pack_or_both_rows_of_a_pair(tmp_path: Path) -> None:
    root = stages.save_volumes(tmp_path)
    for stage, training in (("sft", {"packing": "bfd", "cutoffLength": 48}), ("rm", {}), ("dpo", {}), ("ppo", {})):
        run = tiny.make_run(
            root,
            stages.job(stage, training=training | {"microBatchTokens": 60, "microBatchSize": None}),
            workspace=stage,
        )
        split = open_split(run.prepared.data, "train")
        longest = longest_sample(run.job, split)
        assert run.prepared.summary.longest_row == longest
        if stage == "sft":
            assert split.lengths.max() < longest <= 48
        elif stage == "ppo":
            assert run.job.ppo is not None
            assert longest == split.lengths.max() + run.job.ppo.max_new_tokens
        else:
            assert longest > split.lengths.max()
