"""Stages sft, rm, dpo and kto have the losses of TRL's own trainers, step by step, on the same raw rows.

TRL also trains what a template puts after the stop token, and scores it; here the template puts nothing there. Losses
that TRL doesn't have (orpo, simpo, conservative dpo) are held to their formulas instead, in the tests of the stage.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.datasets import TokenSequences
from finetune_trainer.data.splits import open_split
from finetune_trainer.model import build
from finetune_trainer.run import Run

from tests.trainer.support import equal_to_trl, stages, tiny

CLOSE = 1e-5
STEPS, BATCH, LEARNING_RATE = 6, 8, 0.01
TEMPLATE = tiny.CHATML.replace("<|im_end|>\n", "<|im_end|>")
MARKED = tiny.CHATML.replace(
    "{{ message.content }}<|im_end|>",
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '' }}",
)
"""The same text, with marks around the answers of the assistant. (The empty expression keeps the line break, which the
tag before it would remove.)"""
TRAINING = {"maxSteps": STEPS, "globalBatchSize": BATCH, "microBatchSize": BATCH, "learningRate": LEARNING_RATE}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("root"), template=TEMPLATE)


def received(run: Run) -> tuple[Any, Any]:
    """Model and tokenizer as the stage gets them: TRL starts from the same weights."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(run.prepared.model)
    scratch = run.folders.workspace / "scratch"
    model: Any = build.build(run.job, run.prepared.model, run.prepared.adapter, tokens, "fp32", scratch)
    model.config._attn_implementation = "sdpa"  # TRL pads
    return model, tokens


@pytest.mark.parametrize(
    ("stage", "method", "section", "theirs", "arguments"),
    [
        ("sft", "lora", {}, equal_to_trl.sft, {}),
        ("sft", "full", {}, equal_to_trl.sft, {}),
        ("rm", "lora", {}, equal_to_trl.rm, {}),
        ("rm", "full", {"centerRewards": 0.01}, equal_to_trl.rm, {"center_rewards_coefficient": 0.01}),
        ("dpo", "lora", {}, equal_to_trl.dpo, {}),
        ("dpo", "full", {"beta": 0.3}, equal_to_trl.dpo, {"beta": 0.3}),
        ("dpo", "lora", {"loss": "hinge"}, equal_to_trl.dpo, {"loss_type": ["hinge"]}),
        ("dpo", "lora", {"loss": "ipo"}, equal_to_trl.dpo, {"loss_type": ["ipo"]}),
        ("dpo", "lora", {"ldAlpha": 0.5}, equal_to_trl.dpo, {"ld_alpha": 0.5}),
        (
            "dpo",
            "lora",
            {"sftWeight": 0.7},
            equal_to_trl.dpo,
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
        ),
        ("kto", "lora", {}, equal_to_trl.kto, {}),
        (
            "kto",
            "full",
            {"desirableWeight": 0.8, "undesirableWeight": 1.3},
            equal_to_trl.kto,
            {"desirable_weight": 0.8, "undesirable_weight": 1.3},
        ),
    ],
    ids=lambda value: None if callable(value) else str(value) if value else "default",
)
def test_losses_are_those_of_trl(
    root: Path,
    tmp_path: Path,
    stage: str,
    method: str,
    section: dict[str, Any],
    theirs: Callable[..., list[float]],
    arguments: dict[str, Any],
) -> None:
    job = stages.job(stage, method, training=TRAINING, **({stage: section} if section else {}))
    run = tiny.make_run(root, job, workspace=tmp_path.name)
    stages.train(run)

    raw = [stages.row(stage, index) for index in range(stages.ROWS)]
    rows = equal_to_trl.in_our_order(raw, BATCH, job.training.seed)
    model, tokens = received(run)
    check(run, theirs(model, tokens, rows, settings(tmp_path), **arguments))


def settings(folder: Path) -> dict[str, Any]:
    return equal_to_trl.settings(folder, STEPS, BATCH, LEARNING_RATE)


def check(run: Run, expected: list[float]) -> None:
    """The losses of the run are those of TRL, step by step."""
    assert len(expected) == STEPS
    assert expected[-1] != pytest.approx(expected[0], abs=10 * CLOSE), "nothing was learnt, so nothing is compared"
    assert tiny.losses(run) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_a_mixture_of_experts_has_the_auxiliary_loss_of_trl(root: Path, tmp_path: Path, weight: float) -> None:
    """Its weight is that of the model's configuration."""
    save_experts(root / "data" / f"experts-{weight}", router_aux_loss_coef=weight)
    model = {"source": f"pvc://data/experts-{weight}"}
    run = tiny.make_run(root, stages.job("sft", training=TRAINING, model=model), workspace=tmp_path.name)
    stages.train(run)

    raw = [stages.row("sft", index) for index in range(stages.ROWS)]
    rows = equal_to_trl.in_our_order(raw, BATCH, run.job.training.seed)
    check(run, equal_to_trl.sft(*received(run), rows, settings(tmp_path)))
    assert len(stages.history(run, "aux_loss")) == (STEPS if weight else 0)


def save_experts(folder: Path, **settings: Any) -> None:
    """A tiny Mixtral with random weights and the tiny tokenizer."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    tokens = tiny.tokenizer(TEMPLATE)
    config = MixtralConfig(
        vocab_size=len(tokens),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=256,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=None,
        **settings,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    tokens.save_pretrained(folder)


def test_an_adapter_is_the_adapter_of_trl(root: Path, tmp_path: Path) -> None:
    """Its modules, its scale and its first values, on a model with a tied head."""
    from transformers import AutoModelForCausalLM

    job = stages.job("sft", training=TRAINING, tuning={"method": "lora", "lora": {"rank": 4, "alpha": 12}})
    run = tiny.make_run(root, job, workspace=tmp_path.name)
    stages.train(run)

    raw = [stages.row("sft", index) for index in range(stages.ROWS)]
    rows = equal_to_trl.in_our_order(raw, BATCH, job.training.seed)
    model, tokens = received(run)
    ours = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    base = AutoModelForCausalLM.from_pretrained(run.prepared.model)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = {"r": 4, "lora_alpha": 12, "target_modules": linear}
    check(run, equal_to_trl.adapted_sft(base, tokens, rows, settings(tmp_path), ours, **lora))


@pytest.mark.parametrize("template", [tiny.CHATML, MARKED], ids=["plain", "marked"])
def test_all_answers_of_a_conversation_are_trained_as_trl_trains_them(tmp_path: Path, template: str) -> None:
    """By the marks of a template. Without marks, the text after each prompt is the same."""
    root = stages.save_volumes(tmp_path / "root", template=template)
    raw = [chat(index) for index in range(stages.ROWS)]
    stages.save(root / "data" / "chats.jsonl", raw)
    chats = [{"source": "pvc://data/chats.jsonl", "format": "openai"}]
    job = stages.job("sft", training=TRAINING, datasets=chats)
    run = tiny.make_run(root, job)
    stages.train(run)

    model, tokens = received(run)
    tokens.chat_template = MARKED
    rows = equal_to_trl.in_our_order(raw, BATCH, job.training.seed)
    check(run, equal_to_trl.chats_sft(model, tokens, rows, settings(tmp_path)))


def chat(index: int) -> dict[str, Any]:
    """One to three questions, each with its answer."""
    turns = [stages.row("sft", index + 5 * turn)["messages"] for turn in range(1 + index % 3)]
    return {"messages": [message for turn in turns for message in turn]}


def test_losses_of_packs_are_those_of_trl(root: Path, tmp_path: Path) -> None:
    """Both pack on their own, into the same packs."""
    cutoff, packs_a_step = 48, 2
    training = {
        "maxSteps": STEPS,
        "globalBatchSize": packs_a_step,
        "microBatchSize": packs_a_step,
        "packing": "bfd",
        "cutoffLength": cutoff,
        "learningRate": LEARNING_RATE,
    }
    job = stages.job("sft", training=training)
    run = tiny.make_run(root, job, workspace=tmp_path.name)
    stages.train(run)

    model, tokens = received(run)
    packs = TokenSequences(open_split(run.prepared.data, "train"), "bfd")
    documents = [{tokens.decode(row.input_ids) for row in packs.documents(pack)} for pack in range(len(packs))]
    assert len(packs) > packs_a_step, "there is an order to be kept"
    taken = equal_to_trl.in_our_order(documents, packs_a_step, job.training.seed)
    raw = [stages.row("sft", index) for index in range(stages.ROWS)]
    arguments = equal_to_trl.settings(tmp_path, STEPS, packs_a_step, LEARNING_RATE)
    expected = equal_to_trl.packed_sft(model, tokens, raw, arguments, cutoff, taken)
    assert len(expected) == STEPS
    assert tiny.losses(run) == pytest.approx(expected, abs=CLOSE)
