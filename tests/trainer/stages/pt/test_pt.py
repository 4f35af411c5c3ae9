"""Whole runs of stage pt: documents as a stream or packed whole, every token trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.splits import open_split
from finetune_trainer.errors import Preempted
from finetune_trainer.run import Run
from finetune_trainer.stages.pt import workflow

from tests.trainer.support import tiny


def make_run(root: Path, *, workspace: str = "work", attempt: int = 1, **training: object) -> Run:
    tiny.save_documents(root / "data" / "texts.jsonl")
    job = tiny.job(
        stage="pt",
        datasets=[{"source": "pvc://data/texts.jsonl", "format": "text"}],
        training={"cutoffLength": 64, "globalBatchSize": 4, "microBatchSize": 2, **training},
    )
    return tiny.make_run(root, job, workspace=workspace, attempt=attempt)


@pytest.mark.parametrize("packing", [None, "bfd", "none"])
def test_pt_learns_text(root: Path, packing: str | None) -> None:
    more: dict[str, Any] = {"packing": packing, "cutoffLength": 128} if packing else {}
    run = make_run(root, maxSteps=20, **more)
    outcome = workflow.run(run)
    losses = tiny.losses(run)
    assert losses[-1] < losses[0] - 0.1
    assert outcome.artifact.kind == "adapter"
    facts = json.loads((run.folders.artifact / "provenance.json").read_text())
    assert facts["job"]["stage"] == "pt"


def test_the_stream_wastes_nothing_and_every_token_counts(root: Path) -> None:
    run = make_run(root, maxSteps=1)
    split = open_split(run.prepared.data, "train")
    assert split.packs is not None
    assert set(split.packs.lengths[:-1].tolist()) == {64}
    documents = list(split)
    end = documents[0].input_ids[-1]
    assert all(row.input_ids[-1] == end and row.trained == [(0, len(row.input_ids))] for row in documents)


def test_a_resumed_run_over_packs_has_the_losses_of_an_uninterrupted_run(root: Path) -> None:
    straight = make_run(root, workspace="straight", packing="bfd", cutoffLength=128, maxSteps=7)
    workflow.run(straight)
    first = tiny.stopped_at(make_run(root, workspace="again", packing="bfd", cutoffLength=128, maxSteps=7), 3)
    with pytest.raises(Preempted):
        workflow.run(first)
    second = make_run(root, workspace="again", attempt=2, packing="bfd", cutoffLength=128, maxSteps=7)
    workflow.run(second)
    assert tiny.losses(second) == tiny.losses(straight)
