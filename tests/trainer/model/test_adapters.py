"""Each tuning method trains its own weights and no others, and the saved result gives the same logits."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import Artifact, Prepared
from finetune_trainer.artifact import provenance, writer
from finetune_trainer.errors import InvalidSpec, NotFound, TrainerError
from finetune_trainer.model import base, build, derived_files, merging, optimizer, stream, trainable, vocabulary
from finetune_trainer.model.model_files import BASE_ADAPTER
from finetune_trainer.run import Run
from finetune_trainer.workspace.folders import layout
from finetune_trainer.workspace.prepared import PreparedJob
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer.support import tiny

ROWS = [[5, 9, 30, 41, 77, 8, 11, 60], [100, 3, 2, 4, 250, 19]]
SUMMARY = Prepared(digest="sha256:0", rows=1, tokens=1, trained_tokens=1)
METRICS = {"train_loss": 1.0, "final_loss": 1.0, "train_samples": 1, "num_tokens": 1, "train_steps": 1}


@dataclass
class Place:
    """A base model, its tokenizer, and a directory for artifacts."""

    root: Path
    model: Path
    tokens: Any

    @property
    def scratch(self) -> Path:
        return self.root / "work" / "cache" / "merged"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("models")
    folder = tiny.save_model(root / "models" / "model", num_hidden_layers=3, tie_word_embeddings=False)
    tiny.save_rows(root / "data" / "rows.jsonl")
    return Place(root, folder, AutoTokenizer.from_pretrained(folder))


def job(tuning: dict[str, Any], **sections: Any) -> ResolvedJob:
    return tiny.job(tuning=tuning, **sections)


def built(
    place: Place, of: ResolvedJob, adapter: Path | None = None, precision: base.Precision = "fp32", tokens: Any = None
) -> Any:
    """The job's model. The tests compare its rows with those of plain models."""
    model: Any = build.build(of, place.model, adapter, tokens or place.tokens, precision, place.scratch)
    trainable.cast_trainable(model, precision)
    model.config._attn_implementation = "sdpa"
    return model


def step(model: Any, ids: torch.Tensor | None = None, rate: float = 0.05) -> list[str]:
    """Two steps of gradient descent on every trained weight. Returns the names of these weights."""
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    for _ in range(2):  # B is zero at first, so A changes from the second step on
        model.zero_grad()
        ids = torch.tensor(ROWS[:1]) if ids is None else ids
        model.train()
        with stream.in_rows(model):
            model(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for weight in trained.values():
                weight -= rate * weight.grad.sign()
    return list(trained)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.inference_mode(), stream.in_rows(model):
        return torch.cat([model(input_ids=torch.tensor([row])).logits[0].float() for row in ROWS])


def run_of(place: Place, of: ResolvedJob, name: str, adapter: Path | None = None) -> Run:
    """A run with a workspace of its own and a prepared model."""
    prepared = PreparedJob(place.model, adapter, place.root, ["train"], SUMMARY)
    job_folder = place.root / f"work-{name}" / "jobs" / of.name
    folders = layout(place.root / f"work-{name}", of.name, 1, "run", {"models": place.root / "models"})
    job_folder.mkdir(parents=True, exist_ok=True)
    facts = AttemptFacts(namespace="default", name=of.name, uid="12345-uid", attempt=1, job_name="tiny-12345-1")
    return Run(
        job=of,
        attempt=facts,
        run_id="run",
        folders=folders,
        rank=0,
        local_rank=0,
        world_size=1,
        micro_batch=MicroBatch(1),
        prepared=prepared,
    )


def save(place: Place, of: ResolvedJob, model: Any, name: str, *, adapter: Path | None = None, **more: Any) -> Path:
    run = run_of(place, of, name, adapter)
    write(run, model, place.tokens, **more)
    return run.folders.artifact


def write(run: Run, model: Any, tokens: Any, **more: Any) -> Artifact:
    """The artifact, written as at the end of training."""
    return writer.write(run, model, tokens, provenance.collect(run, METRICS, 1, "fp32", "none"), METRICS, **more)


def plain(folder: Path, tokens: int = 0) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    vocabulary.grow(model, tokens)
    return model


LORAS: dict[str, dict[str, Any]] = {
    "plain": {"targets": ["q_proj", "down_proj"]},
    "rslora": {"rsLora": True},
    "dora": {"dora": True},
    "modules": {"modulesToSave": ["embed_tokens", "lm_head", "norm"]},
}


@pytest.mark.parametrize("kind", LORAS)
def test_only_the_adapter_is_trained_and_it_loads_on_the_untouched_base(place: Place, kind: str) -> None:
    of = job({"method": "lora", "lora": {"rank": 4, **LORAS[kind]}})
    model = built(place, of)
    before = {name: w.clone() for name, w in model.named_parameters() if not w.requires_grad}
    moved = step(model)
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters() if not w.requires_grad)
    if kind == "plain":
        assert {name.split(".")[-4] for name in moved} <= {"q_proj", "down_proj", "lora_A", "lora_B"}
    expected = logits(model)
    folder = save(place, of, model, kind)
    loaded = PeftModel.from_pretrained(plain(place.model), folder)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


def test_lora_plus_gives_only_b_matrices_the_higher_rate(place: Place) -> None:
    model = built(place, job({"method": "lora", "lora": {"rank": 2, "modulesToSave": ["norm"]}}))
    rate_of = {
        id(weight): group["lr"]
        for group in optimizer.parameter_groups(model, 0.01, 0.1, 16)
        for weight in group["params"]
    }
    rates = {name: rate_of[id(weight)] for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(rates) == len(rate_of)
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {0.16}
    assert {rate for name, rate in rates.items() if ".lora_B." not in name} == {0.01}
    assert optimizer.parameter_groups(model, 0.01, 0.1, 16)[0]["lr"] == 0.01


def test_models_that_differ_in_a_middle_layer_have_different_derived_files(tmp_path: Path) -> None:
    of = job({"method": "lora", "lora": {"rank": 4, "init": "pissa"}})
    places = []
    for number, middle in enumerate((b"\0", b"\1")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(2 << 20) + middle + bytes(2 << 20))
        places.append(derived_files.pissa_file(of, folder, None, tmp_path))
    source = of.model.source
    places += [derived_files.pissa_file(of, tmp_path, None, tmp_path, {source: f"sha256:{digest}"}) for digest in "ab"]
    assert len(set(places)) == 4


def test_rank_0_makes_derived_files_and_the_other_ranks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.collectives.new_group", lambda _patience: "line")
    happened: list[str] = []
    monkeypatch.setattr("torch.distributed.barrier", lambda _line: happened.append("waited"))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda _line: None)
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        derived_files.make_on_rank_0(lambda rank=rank: happened.append(f"made by {rank}"))  # type: ignore[misc]
    assert happened == ["made by 0", "waited", "waited"]


def test_pissa_survives_a_new_attempt_and_is_saved_as_an_adapter_of_the_untouched_base(place: Place) -> None:
    of = job({"method": "lora", "lora": {"rank": 4, "init": "pissa"}})
    run = run_of(place, of, "pissa")
    scratch = writer.merge_cache(run)
    model = build.build(of, place.model, None, place.tokens, "fp32", scratch)
    torch.testing.assert_close(logits(model), logits(plain(place.model)), atol=1e-4, rtol=1e-4)
    step(model)
    again = build.build(of, place.model, None, place.tokens, "fp32", scratch)
    again.load_state_dict({n: w for n, w in model.state_dict().items() if "lora_" in n}, strict=False)
    assert torch.equal(logits(again), logits(model))
    write(run, again, place.tokens)
    folder = run.folders.artifact
    loaded = PeftModel.from_pretrained(plain(place.model), folder)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ({"layers": 1}, {"layers.2"}),
        ({"layers": -2}, {"layers.0", "layers.1"}),
        ({"layers": 1, "modules": ["mlp"], "extraModules": ["lm_head", "norm"]}, {"layers.2.mlp", "lm_head", "norm"}),
    ],
)
def test_freeze_trains_the_named_layers(place: Place, freeze: dict[str, Any], expected: set[str]) -> None:
    of = job({"method": "freeze", "freeze": freeze})
    model = built(place, of)
    moved = {name.removeprefix("model.") for name in step(model)}
    assert all(any(name.startswith(part + ".") for part in expected) for name in moved)
    assert all(any(name.startswith(part + ".") for name in moved) for part in expected)
    want = logits(model)
    folder = save(place, of, model, "freeze")
    torch.testing.assert_close(logits(plain(folder)), want)


def test_freeze_in_bf16_keeps_the_trained_layers_in_fp32(place: Place) -> None:
    model = built(place, job({"method": "freeze"}), precision="bf16")
    assert {w.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}
    assert {w.dtype for w in model.parameters() if not w.requires_grad} == {torch.bfloat16}


def test_an_earlier_adapter_is_continued_or_merged_first(place: Place) -> None:
    first = built(place, job({"method": "lora", "lora": {"rank": 2}}))
    step(first)
    want = logits(first)
    folder = save(place, job({"method": "lora", "lora": {"rank": 2}}), first, "first")

    source = {"source": "pvc://models/adapter"}
    more = built(place, job({"method": "lora", "adapter": source}), folder)
    assert torch.equal(logits(more), want)
    assert all("lora_" in name for name in step(more))

    of = job({"method": "lora", "lora": {"rank": 2}, "adapter": {**source, "mode": "merge"}})
    fresh = built(place, of, folder)
    torch.testing.assert_close(logits(fresh), want, atol=1e-5, rtol=1e-5)
    step(fresh)
    made_of = save(place, of, fresh, "second", adapter=folder)
    both = merging.merge(plain(place.model), made_of / BASE_ADAPTER)
    loaded = PeftModel.from_pretrained(both, made_of)
    torch.testing.assert_close(logits(loaded), logits(fresh), atol=1e-4, rtol=1e-4)

    full = built(place, job({"method": "full", "adapter": {**source, "mode": "merge"}}), folder)
    torch.testing.assert_close(logits(full), want, atol=1e-5, rtol=1e-5)
    assert not isinstance(full, PeftModel)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["lora", "freeze"])
def test_new_tokens_are_learned_and_saved(tmp_path: Path, method: str, tied: bool) -> None:
    folder = tiny.save_model(tmp_path / "models" / "model", tie_word_embeddings=tied)
    tokens: Any = AutoTokenizer.from_pretrained(folder)
    old = len(tokens)
    tokens.add_tokens(["<call>", "<result>"])
    other_place = Place(tmp_path, folder, tokens)
    of = job({"method": method}, model={"source": "pvc://models/model", "newTokens": ["<call>", "<result>"]})
    model = built(other_place, of)
    grown = plain(folder, len(tokens))
    row = torch.tensor([[old, 5, old + 1, 9, old]])
    torch.testing.assert_close(model(input_ids=row).logits, grown(input_ids=row).logits, atol=1e-5, rtol=1e-5)
    mean = plain(folder).get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(grown.get_input_embeddings().weight[old], mean)

    head = model.get_output_embeddings().weight
    before = (model.get_input_embeddings().weight[old:].detach().clone(), head[old:].detach().clone())
    step(model, row)
    assert not torch.equal(model.get_input_embeddings().weight[old:], before[0])
    assert not torch.equal(model.get_output_embeddings().weight[old:], before[1])
    model.eval()
    want = model(input_ids=row).logits
    saved = save(other_place, of, model, f"tokens-{method}-{tied}")
    loaded = plain(saved) if method == "freeze" else PeftModel.from_pretrained(plain(folder, len(tokens)), saved)
    torch.testing.assert_close(loaded.eval()(input_ids=row).logits, want, atol=1e-5, rtol=1e-5)
    assert AutoTokenizer.from_pretrained(saved).convert_tokens_to_ids("<result>") == old + 1


def test_the_artifact_has_the_stop_tokens_of_training(place: Place) -> None:
    of = job({"method": "lora"})
    folder = save(place, of, built(place, of), "stops", stop_ids={7, 2})
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 7]


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"method": "freeze", "freeze": {"layers": 9}}, r"9 given, but this model has 3 layers"),
        ({"method": "freeze", "freeze": {"modules": ["attn"]}}, "no attn there. It has: .*mlp.*self_attn"),
        ({"method": "freeze", "freeze": {"extraModules": ["head"]}}, "no head there. It has: .*lm_head"),
        ({"lora": {"modulesToSave": ["wte"]}}, "no wte. It has: .*embed_tokens"),
        ({"lora": {"dora": True, "init": "pissa"}}, "can't be combined"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_by_name(
    place: Place, tuning: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSpec, match=message):
        built(place, job(tuning))


def test_flash_attention_without_a_gpu_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    of = job({}, model={"source": "pvc://models/model", "attention": "flashAttention2"})
    with pytest.raises(InvalidSpec, match=r"no GPU is visible\. Use auto or sdpa"):
        built(place, of)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, NotFound, "has no adapter_config.json"),
        ({"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.bin": {}}, NotFound, "they can run code"),
        (
            {"adapter_config.json": {"peft_type": "IA3"}, "adapter_model.safetensors": {}},
            InvalidSpec,
            "only LORA adapters",
        ),
        (
            {
                "adapter_config.json": {"peft_type": "LORA", "init_lora_weights": "pissa"},
                "adapter_model.safetensors": {},
            },
            InvalidSpec,
            "changed base",
        ),
    ],
)
def test_an_unusable_adapter_is_refused(
    place: Place, tmp_path: Path, files: dict[str, Any], error: type[TrainerError], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        built(place, job({"adapter": {"source": "pvc://models/adapter"}}), tmp_path)


def test_an_adapter_of_another_model_is_refused(place: Place, tmp_path: Path) -> None:
    wide = tiny.save_model(tmp_path / "models" / "wide", hidden_size=64)
    other = Place(tmp_path, wide, place.tokens)
    folder = save(other, job({}), built(other, job({})), "wide")
    with pytest.raises(InvalidSpec, match="does not fit the model"):
        built(place, job({"adapter": {"source": "pvc://models/adapter"}}), folder)


def test_weights_are_counted(place: Place) -> None:
    trained, of = trainable.count_weights(built(place, job({"method": "full"})))
    assert trained == of == sum(math.prod(w.shape) for w in plain(place.model).parameters())
