"""Recomputation: what is decided when an attempt starts, and that results do not depend on it."""

import itertools
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_api.micro_batch import MicroBatch
from finetune_trainer import collectives
from finetune_trainer.model import recomputation as layers_of
from finetune_trainer.prepare.footprint import Footprint, Recomputation
from finetune_trainer.runtime import gpumemory
from finetune_trainer.training import recomputation
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trainer.support import tiny
from tests.trainer.support.attempt import Series, recorded, stopped
from tests.trainer.support.forge import Forge

GIB, ONE = 1 << 30, MicroBatch(1)
NUMBERS: dict[str, Any] = dict.fromkeys(Footprint.__dataclass_fields__, 0) | {
    "length": 1024,
    "rows": 1,
    "share": 8,
    "layers": 8,
    "recomputable": "each",
    "layer": 1 << 20,
    "layer_input": 1 << 14,
}
SMALL = Footprint(**NUMBERS)
"""A layer keeps 1 GiB of each sample, and 16 MiB if it is recomputed."""


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_resumes_with_other_layers_recomputed_is_bit_equal(
    forge: Forge, root: Path, tmp_path: Path, method: str
) -> None:
    def job(recompute: str) -> Any:
        tuning = {"method": method, **({"lora": {"rank": 4, "dropout": 0.1}} if method == "lora" else {})}
        return tiny.job(training={"recompute": recompute}, tuning=tuning, checkpoints={"everySteps": 2})

    whole = Series(forge, root, tmp_path / "whole", job("none"), recorded)
    assert whole.run() == 0, whole.log
    assert "recomputed in the backward pass: none" in whole.log
    cut = Series(forge, root, tmp_path / "cut", job("none"), recorded)
    assert cut.run(end=partial(stopped, step=3)) == 75, cut.log
    cut.job = job("all" if method == "full" else "layers")
    assert cut.run() == 0, cut.log
    expected = "all" if method == "full" else "1 of 2 layers"
    assert f"recomputed in the backward pass: {expected}" in cut.log
    assert cut.weights == whole.weights
    assert cut.logged("loss") == whole.logged("loss")
    provenance = json.loads((cut.home / "artifact" / "provenance.json").read_text())
    assert provenance["recompute"] == expected
    status = json.loads((cut.home / "reports" / "status.json").read_text())["status"]
    assert status["progress"]["recompute"] == expected


def test_the_fewest_layers_that_fit_are_recomputed() -> None:
    choices = [str(SMALL.choose("auto", ONE, gib * GIB)) for gib in (80, 12, 8, 6, 4, 1)]
    assert choices[0] == "none"
    assert choices[-1] == "all"
    counts = [SMALL.choose("auto", ONE, gib * GIB).recomputed for gib in (80, 12, 8, 6, 4, 1)]
    assert counts == sorted(counts)
    assert 0 < counts[2] < 8
    shorter = replace(SMALL, length=512)
    assert SMALL.choose("auto", ONE, 8 * GIB).recomputed > shorter.choose("auto", ONE, 8 * GIB).recomputed


def test_a_user_decides_before_the_estimate() -> None:
    assert str(SMALL.choose("none", MicroBatch(8), GIB)) == "none"
    assert str(SMALL.choose("all", ONE, 800 * GIB)) == "all"
    assert str(SMALL.choose("layers", ONE, 800 * GIB)) == "1 of 8 layers"
    assert str(SMALL.choose("layers", ONE, None)) == "4 of 8 layers"
    assert str(SMALL.choose("auto", ONE, None)) == "all", "the memory is unknown"


def test_a_micro_batch_in_tokens_counts_as_so_many_tokens_of_the_longest_rows() -> None:
    """It has room for the longest sample, and never holds more than a step."""
    some = SMALL.recompute(3)
    for size, rows in ((2048, 2), (100, 1), (1 << 20, 8)):
        assert SMALL.at(MicroBatch(size, "tokens"), some) == SMALL.at(MicroBatch(rows), some)
    between = SMALL.at(MicroBatch(1536, "tokens"), some).total
    assert SMALL.at(ONE, some).total < between < SMALL.at(MicroBatch(2), some).total
    proposed = replace(SMALL, rows=2).largest_micro_batch(some, 80 * GIB, "tokens")
    assert proposed is not None
    assert proposed.unit == "tokens"
    assert proposed.size % 2048 == 0


def test_a_model_whose_layers_have_no_switch_recomputes_all_or_none() -> None:
    at_once = replace(SMALL, recomputable="all")
    assert [str(at_once.choose("auto", ONE, gib * GIB)) for gib in (80, 8)] == ["none", "all"]
    assert str(replace(SMALL, recomputable="none").choose("auto", ONE, GIB)) == "none"


@pytest.mark.parametrize("count", range(7))
def test_recomputed_layers_are_spread_evenly(count: int) -> None:
    chosen = [layer for layer in range(6) if Recomputation(count, 6).includes(layer)]
    assert len(chosen) == count
    assert all(after - before >= 6 // max(1, count) for before, after in itertools.pairwise(chosen))


def test_exactly_the_chosen_layers_are_recomputed() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=6, num_attention_heads=2, vocab_size=16)
    ).train()
    assert layers_of.of_model(model) == "each"
    model.activation_checkpointing_enable(layers_of.KWARGS)
    layers_of.keep_others(model, Recomputation(2, 6).includes)
    runs = [0] * 6
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: runs.__setitem__(number, runs[number] + 1))
    model(input_ids=torch.ones((1, 4), dtype=torch.long)).logits.sum().backward()
    assert sorted(runs) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("estimated", [True, False])
@pytest.mark.parametrize(
    ("gpus", "attempt", "decided"),
    [
        ([80, 80], None, {True: "none", False: "all"}),
        ([80, 6], None, {True: "5 of 8 layers", False: "all"}),
        ([80, 80], "all", {True: "all", False: "all"}),
        ([], None, {True: "none", False: "none"}),
    ],
)
def test_an_attempt_decides_by_its_smallest_gpu(
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[int],
    attempt: str | None,
    decided: dict[bool, str],
    estimated: bool,
) -> None:
    """Without an estimate, as for data that an earlier release prepared, GPUs recompute all layers and CPUs none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=next(iter(gpus)) * GIB)
    )
    monkeypatch.setattr(collectives, "all_gather", lambda *_: [[gib * GIB] for gib in gpus])
    run: Any = SimpleNamespace(
        attempt=SimpleNamespace(recompute=attempt),
        job=tiny.job(training={"recompute": "auto"}),
        prepared=SimpleNamespace(memory=asdict(SMALL) if estimated else None),
        micro_batch=ONE,
        is_main=True,
    )
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=8, num_attention_heads=2, vocab_size=16)
    chosen = recomputation.decide(run, LlamaForCausalLM(config))
    assert str(chosen) == decided[estimated]
    memory = gpumemory.details(RuntimeError(), 0, ONE)
    assert memory.recompute == str(chosen)
