"""Method qlora, on the CPU: the base is quantised, adapters are fp32 from the first step to the last, also after a
resume, and the merged model has the measured drift."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.artifact import export, merge
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import build, saved_adapter, trainable
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer.model.test_adapters import ROWS, Place, built, job, logits, plain, run_of, step, write
from tests.trainer.support import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("merged")
    folder = tiny.save_model(
        root / "models" / "model", hidden_size=64, intermediate_size=128, tie_word_embeddings=False
    )
    return Place(root, folder, AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("quantization", [{"bits": 4}, {"bits": 4, "doubleQuantization": False}, {"bits": 8}])
def test_the_base_is_quantised_and_only_the_adapter_is_trained(place: Place, quantization: dict[str, Any]) -> None:
    model = built(place, job({"method": "qlora", "quantization": quantization}), precision="bf16")
    frozen = {name: w.dtype for name, w in model.named_parameters() if "base_layer" in name}
    assert set(frozen.values()) == {torch.uint8 if quantization["bits"] == 4 else torch.int8}
    assert {w.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert all("lora_" in name for name in step(model))


def test_a_resumed_adapter_is_fp32_and_gives_the_same_logits(place: Place, tmp_path: Path) -> None:
    of = job({"method": "qlora"})
    first = built(place, of)
    step(first)
    first.save_pretrained(tmp_path)
    again = built(place, of)
    again.load_adapter(str(tmp_path), "default", is_trainable=True)
    trainable.cast_trainable(again, "fp32")
    assert {w.dtype for w in again.parameters() if w.requires_grad} == {torch.float32}
    assert torch.equal(logits(again), logits(first))


def test_dora_on_4_bit_trains(place: Place) -> None:
    model = built(place, job({"method": "qlora", "lora": {"rank": 2, "dora": True}}))
    assert any("magnitude" in name for name in step(model))


def test_an_earlier_adapter_is_merged_before_the_base_is_quantised(place: Place, tmp_path: Path) -> None:
    first = built(place, job({"lora": {"rank": 2}}))
    step(first)
    run = run_of(place, job({}), "before")
    write(run, first, place.tokens)
    of = job({"method": "qlora", "adapter": {"source": "pvc://models/adapter", "mode": "merge"}})
    build.build(of, place.model, run.folders.artifact, place.tokens, "fp32", tmp_path)
    kept = list(tmp_path.iterdir())
    assert [path.name.startswith("base-") for path in kept] == [True]
    torch.testing.assert_close(logits(plain(kept[0])), logits(first), atol=1e-4, rtol=1e-4)
    written = kept[0].stat().st_mtime_ns
    build.build(of, place.model, run.folders.artifact, place.tokens, "fp32", tmp_path)
    assert list(tmp_path.iterdir()) == kept
    assert kept[0].stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        ("lora", {"rank": 4}),
        ("lora", {"rank": 4, "modulesToSave": ["lm_head"]}),
        ("qlora", {"rank": 4, "rsLora": True}),
    ],
)
def test_a_merged_model_equals_base_and_adapter(place: Place, method: str, lora: dict[str, Any]) -> None:
    of = job({"method": method, "lora": lora}, output={"merge": True})
    model = built(place, of)
    step(model)
    run = run_of(place, of, f"{method}-{len(lora)}")
    made_of = write(run, model, place.tokens, stop_ids=[2])
    folder = run.folders.artifact
    assert made_of.kind == "model"
    assert not list(folder.rglob("*.bin"))
    assert not list(folder.rglob("*.p*t"))

    apart = saved_adapter.attach(plain(place.model), folder / "adapter", "adapter")
    torch.testing.assert_close(logits(plain(folder)), logits(apart), atol=1e-4, rtol=1e-4)
    facts = json.loads((folder / "provenance.json").read_text())["merge"]
    assert facts["difference"] <= 1e-4
    assert facts["rounding"]["top1"] >= 0.99
    card = (folder / "README.md").read_text()
    if method == "qlora":
        drift = facts["drift"]
        assert drift["kl"] > 0
        assert 0 < drift["top1"] <= 1
        assert f"quantised base with the adapter | same top token {drift['top1']:.1%}" in card
    else:
        torch.testing.assert_close(logits(plain(folder)), logits(model), atol=1e-4, rtol=1e-4)
        assert facts["drift"] is None
        assert "quantised" not in card


def test_tied_weights_that_were_trained_stay_tied_when_merged(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "models" / "model", tie_word_embeddings=True)
    other_place = Place(tmp_path, folder, AutoTokenizer.from_pretrained(folder))
    of = job({"lora": {"rank": 2, "modulesToSave": ["lm_head"]}}, output={"merge": True})
    model = built(other_place, of)
    step(model)
    run = run_of(other_place, of, "tied")
    write(run, model, other_place.tokens)
    torch.testing.assert_close(logits(plain(run.folders.artifact)), logits(model), atol=1e-4, rtol=1e-4)


def test_output_is_rounded_once_to_the_requested_type(place: Place) -> None:
    for method in ("full", "lora"):
        of = job({"method": method}, output={"dtype": "bf16", "merge": method == "lora"})
        run = run_of(place, of, f"bf16-{method}")
        write(run, built(place, of), place.tokens)
        weights = load_file(run.folders.artifact / "model.safetensors")
        assert {w.dtype for w in weights.values()} == {torch.bfloat16}
        base = load_file(place.model / "model.safetensors")
        assert all(torch.equal(weights[name], w.to(torch.bfloat16)) for name, w in base.items())
        assert AutoModelForCausalLM.from_pretrained(run.folders.artifact).dtype == torch.bfloat16


def test_the_adapter_of_a_finished_job_can_be_exported(place: Place, tmp_path: Path) -> None:
    of = job({"method": "lora"})
    model = built(place, of)
    step(model)
    run = run_of(place, of, "export")
    write(run, model, place.tokens, stop_ids=[2])
    done = export.export(of, run.folders, tmp_path / "out")
    assert done.drift is None
    torch.testing.assert_close(logits(plain(tmp_path / "out")), logits(model), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    with pytest.raises(InvalidSpec, match="exists already"):
        export.export(of, run.folders, tmp_path / "out")


def test_distance_is_zero_to_itself_and_grows(place: Place) -> None:
    here = merge.probe(plain(place.model), ROWS)
    assert merge.distance(here, here) == merge.Distance(top1=1.0, kl=0.0)
    doubled = [logits * 2 for logits in here]
    assert merge.distance(here, doubled).kl > 0
