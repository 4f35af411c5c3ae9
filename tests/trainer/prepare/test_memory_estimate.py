"""The certain terms of the estimate are the sizes of real tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.micro_batch import MicroBatch
from finetune_trainer.model import base, build, optimizer, stream, trainable
from finetune_trainer.prepare import memory_estimate
from finetune_trainer.prepare.footprint import Estimate, Footprint
from transformers import AutoConfig, AutoTokenizer

from tests.trainer.support import tiny

SIZES: dict[str, dict[str, Any]] = {
    "tied": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2},
    "deep": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "tie_word_embeddings": False},
    "wide": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 4096},
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"rank": 16}},
    "lora with modules": {"method": "lora", "lora": {"rank": 4, "modulesToSave": ["embed_tokens"]}},
    "dora": {"method": "lora", "lora": {"rank": 1, "dora": True}},
    "qlora": {"method": "qlora", "lora": {"rank": 8}},
    "qdora": {"method": "qlora", "lora": {"rank": 1, "dora": True}},
    "qlora, one scale": {"method": "qlora", "quantization": {"doubleQuantization": False}},
    "qlora 8 bit": {"method": "qlora", "quantization": {"bits": 8}},
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "freeze": {"layers": 1, "extraModules": ["norm"]}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("memory")
    return {name: tiny.save_model(root / name, **settings) for name, settings in SIZES.items()}


def size(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, torch.Tensor) else 0


def state_of(weight: Any) -> int:
    """Bytes that bitsandbytes keeps beside a quantized weight."""
    total = size(getattr(weight, "SCB", None))
    state = getattr(weight, "quant_state", None)
    for part in (state, getattr(state, "state2", None)):
        total += sum(size(value) for value in vars(part).values()) if part is not None else 0
    return total


def footprint(config: Any, job: Any, **settings: Any) -> Footprint:
    return memory_estimate.footprint(config, job.tuning, job.training, **settings)


def estimate(config: Any, job: Any, *, micro_batch: int, **settings: Any) -> Estimate:
    """With what is recomputed if the memory of the GPU is unknown."""
    made = footprint(config, job, **settings)
    rows = MicroBatch(micro_batch)
    return made.at(rows, made.choose(job.training.recomputed, rows, None))


def within_one_percent(estimated: int, real: int) -> bool:
    return abs(estimated - real) <= 0.01 * real


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_certain_terms_are_those_of_real_tensors(
    models: dict[str, Path], name: str, method: str, precision: base.Precision, tmp_path: Path
) -> None:
    folder = models[name]
    job = tiny.job(tuning=METHODS[method])
    model: Any = build.build(job, folder, None, AutoTokenizer.from_pretrained(folder), precision, tmp_path)
    trainable.cast_trainable(model, precision)
    # On a CPU bitsandbytes quantizes its weights again for the first forward pass; on GPUs it keeps the loaded weights.
    states = sum(state_of(weight) for weight in model.parameters())
    packed = sum(size(weight) for weight in model.parameters() if not weight.is_floating_point())
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    adam = torch.optim.AdamW(trained)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with stream.in_rows(model), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(input_ids=ids, labels=ids).loss.backward()
    adam.step()

    added = {n: w for n, w in model.named_parameters() if "lora_" in n or ".modules_to_save." in n}
    loaded = [w for n, w in model.named_parameters() if n not in added]
    moments = [value for state in adam.state.values() for key, value in state.items() if key != "step"]
    real = {
        "weights": states
        + packed
        + sum(size(w) for w in loaded if w.is_floating_point())
        + sum(size(buffer) for buffer in model.buffers()),
        "adapters": sum(size(w) for w in added.values()),
        "gradients": sum(size(w.grad) for w in trained),
        "optimizer": sum(size(value) for value in moments),
    }
    got = estimate(AutoConfig.from_pretrained(folder), job, precision=precision, length=64, micro_batch=2)
    wrong = {
        term: (getattr(got, term), it) for term, it in real.items() if not within_one_percent(getattr(got, term), it)
    }
    assert not wrong, f"estimated, real: {wrong}"
    assert got.certain < got.total


@pytest.mark.parametrize("method", ["lora", "qlora", "full", "freeze"])
def test_a_reward_model_has_a_reward_head_and_no_logits(models: dict[str, Path], method: str, tmp_path: Path) -> None:
    folder = models["wide"]
    job = tiny.job(stage="rm", tuning=METHODS[method], datasets=[{"source": "pvc://data/a", "format": "preference"}])
    model: Any = build.build(job, folder, None, AutoTokenizer.from_pretrained(folder), "fp32", tmp_path)
    trainable.cast_trainable(model, "fp32")
    sizes = [size(w) + state_of(w) for w in model.parameters()] + [size(buffer) for buffer in model.buffers()]
    config = AutoConfig.from_pretrained(folder)
    settings: Any = {"precision": "fp32", "length": 64, "micro_batch": 2}
    requirements = memory_estimate.StageRequirements(kind="reward", rows=2)
    got = estimate(config, job, requirements=requirements, **settings)
    of_words = estimate(config, job, **settings)
    assert within_one_percent(got.weights + got.adapters, sum(sizes))
    assert got.logits < of_words.logits
    assert got.activations == 2 * of_words.activations or method != "full"


def test_requirements_of_stages_are_counted(models: dict[str, Path]) -> None:
    folder = models["wide"]
    config = AutoConfig.from_pretrained(folder)
    settings: Any = {"precision": "fp32", "length": 64, "micro_batch": 2}

    def needs(method: str, **requirements: Any) -> Estimate:
        job = tiny.job(tuning=METHODS[method])
        return estimate(config, job, requirements=memory_estimate.StageRequirements(**requirements), **settings)

    whole = sum(size(weight) for weight in base.load(folder, "pvc://models/model", torch.float32).parameters())
    assert within_one_percent(needs("full", copy=True).reference, whole)
    assert needs("full", copy=True, reference_precomputed=True).reference == 0
    assert needs("lora", copy=True).reference == needs("lora").adapters
    other = memory_estimate.frozen_model_bytes(config, tiny.job(tuning=METHODS["lora"]).tuning, "fp32")
    assert within_one_percent(other, whole)
    assert memory_estimate.frozen_model_bytes(config, tiny.job(tuning=METHODS["qlora"]).tuning, "fp32") < 0.6 * other
    both = needs("lora", reference=other, reward=other)
    assert both.certain == needs("lora").certain + 2 * other
    critic = needs("full", critic=True)
    assert critic.weights - needs("full").weights == 4 * (config.hidden_size + 1)
    answers = needs("lora", answers=(512, 4096))
    assert answers.total == answers.certain + answers.generation > needs("lora").total


@pytest.mark.parametrize("name", ["adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"])
def test_the_state_of_each_optimizer_has_the_estimated_size(name: str) -> None:
    from transformers import Trainer, TrainingArguments

    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((64, 32), (96,))]
    arguments = TrainingArguments(optim=name, report_to="none", use_cpu=True)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    made = kind(weights, **settings)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    made.step()
    kept = [v for state in made.state.values() for v in state.values() if isinstance(v, torch.Tensor) and v.ndim]
    assert sum(map(size, kept)) == sum(optimizer.state_bytes(name, weight, 4) for weight in weights)


def test_the_proposal_fits_and_grows_with_the_gpu(models: dict[str, Path]) -> None:
    job = tiny.job(tuning=METHODS["lora"], training={"globalBatchSize": 48})
    made = footprint(AutoConfig.from_pretrained(models["wide"]), job, precision="bf16", length=2048)
    gib = 1 << 30
    sizes = [made.largest_micro_batch(made.recompute(0), amount) for amount in (gib, 2 * gib, 4 * gib, 80 * gib)]
    assert sizes[0] is None
    given = [rows.size for rows in sizes if rows is not None]
    assert given == sorted(given)
    assert given[-1] == 48
    assert all(48 % rows == 0 for rows in given)
    for amount, rows in zip((2 * gib, 4 * gib), sizes[1:3], strict=True):
        assert made.at(rows or MicroBatch(1), made.recompute(0)).fits(amount)


def test_recomputation_and_short_rows_need_less(models: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(models["deep"])
    job = tiny.job(tuning=METHODS["full"])
    sizes = [
        estimate.at(MicroBatch(4), estimate.recompute(layers)).total
        for length in (1024, 512)
        for estimate in [footprint(config, job, precision="bf16", length=length)]
        for layers in (0, 3, 6)
    ]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[5]
    assert sizes[1] > sizes[4]
