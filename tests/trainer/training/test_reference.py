"""The reference of stages dpo, kto and ppo: equal to the policy at first, and unchanged afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.data import collate
from finetune_trainer.data.row import IGNORED, Row
from finetune_trainer.model import base, build, stream, tokenizer, trainable
from finetune_trainer.prepare import memory_estimate
from finetune_trainer.run import Run
from finetune_trainer.training import logprobs, reference_model
from peft import PeftModel
from transformers import AutoConfig

from tests.trainer.checkpoints.test_exact import sharded
from tests.trainer.support import stages, tiny
from tests.trainer.support.attempt import Series, recorded
from tests.trainer.support.forge import Forge

ROWS = [Row([5, 9, 30, 44, 51, 60, 2], [(2, 7)]), Row([7, 8, 9, 2], [(2, 4)])]


def scores(model: Any) -> torch.Tensor:
    return logprobs.token_log_probs(model, collate.stream(ROWS))


def built(root: Path, tuning: dict[str, Any], precision: base.Precision = "fp32") -> tuple[Run, Any, Any]:
    run = tiny.make_run(root, tiny.job(tuning=tuning, training={"precision": precision}))
    tokens = tokenizer.load(run.prepared.model, run.job.model, run.job.template.name, allow_remote_code=False)
    scratch = run.folders.workspace / "cache" / "merged"
    model = build.build(run.job, run.prepared.model, run.prepared.adapter, tokens, precision, scratch)
    return run, model, tokens


def trained(model: Any) -> None:
    """The model as if trained for some steps."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


def save_adapter(root: Path, **lora: Any) -> dict[str, Any]:
    """An adapter with an effect, as tuning.adapter names it."""
    folder = root / "data" / "earlier"
    model = base.load(root / "models" / "model", "model", torch.float32)
    tuned = trainable.apply(model, tiny.job(tuning={"method": "lora", "lora": lora}).tuning, 3)
    trained(tuned)
    tuned.save_pretrained(str(folder))
    return {"source": "pvc://data/earlier"}


def test_log_probs_are_those_of_the_logits(root: Path) -> None:
    _, model, _ = built(root, {"method": "lora"})
    trained(model)
    expected = []
    for row in ROWS:
        ids = torch.tensor([row.input_ids])
        with stream.in_rows(model):
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        expected += [0.0, *(log_probs * torch.tensor([label != IGNORED for label in row.labels[1:]])).tolist()]
    logprobs.add_fused_head(model)
    torch.testing.assert_close(scores(model), torch.tensor(expected))
    assert logprobs.label_counts(collate.stream(ROWS)).tolist() == [5, 2]


FRESH = {"method": "lora", "lora": {"dropout": 0.3}}
TIED = {"modulesToSave": ["embed_tokens"]}


@pytest.mark.parametrize(
    "tuning",
    [
        FRESH,
        {"method": "lora", "lora": {"init": "pissa"}},
        {"method": "lora", "lora": {"dora": True, **TIED}},
        {"method": "qlora"},
        {"method": "full"},
        {"method": "freeze", "freeze": {"layers": 1}},
    ],
    ids=["lora", "pissa", "dora", "qlora", "full", "freeze"],
)
def test_the_reference_is_the_model_that_the_job_received(root: Path, tuning: dict[str, Any]) -> None:
    run, model, tokens = built(root, tuning)
    check(run, model, tokens)


@pytest.mark.parametrize("mode", ["continue", "merge"])
@pytest.mark.parametrize("lora", [{}, TIED, {"dora": True}], ids=["plain", "tied", "dora"])
def test_the_reference_has_the_earlier_adapter(root: Path, mode: str, lora: dict[str, Any]) -> None:
    earlier = save_adapter(root, **lora)
    run, model, tokens = built(root, {"method": "lora", "adapter": {**earlier, "mode": mode}})
    logprobs.add_fused_head(model)
    plain = base.load(run.prepared.model, "model", torch.float32)
    logprobs.add_fused_head(plain)
    assert not torch.allclose(scores(plain), scores(model.eval()), atol=0.01)
    check(run, model, tokens)


def check(run: Run, model: Any, tokens: Any) -> None:
    wanted = [weight.requires_grad for weight in model.parameters()]
    made = reference_model.make(run, model, tokens)
    assert [w.requires_grad for name, w in model.named_parameters() if f".{reference_model.COPY}" not in name] == wanted
    model.eval()
    start = scores(model).detach()
    model.train()
    with made.activated(model) as other:
        torch.testing.assert_close(scores(other), start, rtol=0, atol=0)
    trained(model)
    assert model.training
    assert not torch.allclose(scores(model.eval()), start, atol=0.01)
    with made.activated(model) as other:
        torch.testing.assert_close(scores(other), start, rtol=0, atol=0)
    assert not torch.allclose(scores(model), start, atol=0.01)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(run.folders.job / "saved"))
        assert not [file for file in (run.folders.job / "saved").rglob("*") if reference_model.COPY in file.name]
        assert set(model.peft_config) == {"default"}


def test_weights_that_are_not_trained_exist_once(root: Path) -> None:
    run, model, tokens = built(root, {"method": "freeze", "freeze": {"layers": 1}})
    made = reference_model.make(run, model, tokens)
    assert made.model is not None
    frozen = {id(weight) for weight in model.parameters() if not weight.requires_grad}
    assert len(frozen & {id(weight) for weight in made.model.parameters()}) == len(frozen) > 0
    assert not any(weight.requires_grad for weight in made.model.parameters())


@pytest.mark.parametrize("tuning", [{"method": "full"}, {"method": "freeze", "freeze": {"layers": 1}}])
def test_in_bf16_a_copy_is_smaller_and_equal_to_the_last_bit(root: Path, tuning: dict[str, Any]) -> None:
    run, model, tokens = built(root, tuning, "bf16")
    made = reference_model.make(run, model, tokens)
    assert made.model is not None
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.autocast("cpu", torch.bfloat16):
        policy = scores(model.eval())
        with made.activated(model) as other:
            torch.testing.assert_close(scores(other), policy, rtol=0, atol=0)
    assert {weight.dtype for weight in trained} == {torch.float32}

    shared = {id(weight) for weight in model.parameters()}
    own = [weight for weight in made.model.parameters() if id(weight) not in shared]
    assert {weight.dtype for weight in own if id(weight) in map(id, trainable.autocast_weights(made.model))} == {
        torch.bfloat16
    }
    estimated = memory_estimate.footprint(
        AutoConfig.from_pretrained(run.prepared.model),
        run.job.tuning,
        run.job.training,
        precision="bf16",
        length=8,
        requirements=memory_estimate.StageRequirements(copy=True),
    )
    assert estimated.reference == sum(weight.numel() * weight.element_size() for weight in own)
    assert estimated.reference < sum(weight.numel() * weight.element_size() for weight in trained)


@pytest.mark.parametrize(("parallelism", "world"), [("ddp", 1), ("fsdp", 2)])
def test_in_bf16_training_begins_without_divergence(
    forge: Forge, stage_root: Path, tmp_path: Path, parallelism: str, world: int
) -> None:
    training = {"maxSteps": 2, "microBatchSize": 2, "precision": "bf16", "parallelism": parallelism}
    install = sharded if parallelism == "fsdp" else recorded
    series = Series(forge, stage_root, tmp_path / "run", stages.job("dpo", training=training), install)
    assert series.run(world=world) == 0, series.log
    first, second = series.logged("rewards/chosen")
    assert first == 0.0 != second
