"""Models and adapters that can't be trained are refused early, with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_api.tuning import TuningSpec
from finetune_trainer.errors import InvalidSpec, NotFound, TrainerError
from finetune_trainer.model import base, tokenizer, trainable

SOURCE = "pvc://models/model"


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """A copy to break."""
    shutil.copytree(model, tmp_path / "model")
    return tmp_path / "model"


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), NotFound, "has no config.json.*It has: chat_template.jinja"),
        (lambda f: (f / "config.json").write_text("{"), InvalidSpec, "config.json is not a JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), NotFound, "no weights"),
        (only_bin, InvalidSpec, "only as pytorch_model.bin, but only safetensors"),
        (lambda f: [file.unlink() for file in f.glob("tokenizer*")], NotFound, "has no tokenizer"),
        (change_config(model_type="martian"), InvalidSpec, "of type 'martian', which can't be loaded"),
        (change_config(model_type="vit"), InvalidSpec, "of type 'vit', which is no causal language model"),
        (change_config(quantization_config={"quant_method": "fp8"}), InvalidSpec, r"comes quantised \(fp8\).*qlora"),
        (change_config(text_config={"compression_config": {"bits": 4}}), InvalidSpec, "comes quantised"),
        (
            change_config(model_type="own", auto_map={"AutoConfig": "code.Own"}),
            InvalidSpec,
            "brings its own code, which is not run",
        ),
    ],
)
def test_a_folder_without_a_usable_model_is_refused(
    folder: Path, damage: Callable[[Path], None], error: type[TrainerError], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        base.check(folder, SOURCE)


def test_missing_weights_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidSpec, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        base.load(folder, SOURCE, torch.float32)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(InvalidSpec, match=f"weights of {SOURCE} can't be loaded"):
        base.load(folder, SOURCE, torch.float32)


def test_stop_tokens_come_from_tokenizer_and_generation_config(folder: Path) -> None:
    tokens = tokenizer.load(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, tokens.eos_token_id]}))
    assert tokenizer.stop_ids(tokens, folder) == sorted({0, tokens.eos_token_id})


@pytest.mark.parametrize("targets", [["q_proj", "v_prj"], ["embed_tokens"]])
def test_an_unknown_target_is_refused_with_the_known_ones(model: Path, targets: list[str]) -> None:
    tuning = TuningSpec.model_validate({"lora": {"targets": targets}})
    loaded = base.load(model, SOURCE, torch.float32)
    with pytest.raises(InvalidSpec, match=rf"{targets[-1]} is no linear layer.*down_proj, gate_proj, k_proj"):
        trainable.apply(loaded, tuning, seed=1)


@pytest.mark.parametrize(
    ("method", "precision", "frozen", "trained"),
    [
        ("lora", "fp32", torch.float32, torch.float32),
        ("lora", "bf16", torch.bfloat16, torch.float32),
        ("lora", "pureBf16", torch.bfloat16, torch.bfloat16),
        ("lora", "fp16", torch.float16, torch.float32),
        ("full", "fp16", None, torch.float32),
        ("full", "bf16", None, torch.float32),
        ("full", "pureBf16", None, torch.bfloat16),
    ],
)
def test_trained_weights_are_fp32_unless_the_job_sets_pure_bf16(
    model: Path, method: str, precision: base.Precision, frozen: torch.dtype | None, trained: torch.dtype
) -> None:
    loaded = base.load(model, SOURCE, trainable.load_dtype(method, precision))
    spec = {"method": method} | ({"lora": {"rank": 2}} if method == "lora" else {})
    tuned = trainable.apply(loaded, TuningSpec.model_validate(spec), seed=1)
    trainable.cast_trainable(tuned, precision)
    assert {w.dtype for w in tuned.parameters() if w.requires_grad} == {trained}
    assert {w.dtype for w in tuned.parameters() if not w.requires_grad} == ({frozen} if frozen else set())
