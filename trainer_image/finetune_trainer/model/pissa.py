"""PiSSA: adapters that start from the principal singular vectors of the base (Meng et al., 2024).

Called by `build` at the start, and by the artifact's writer at the end. The adapter's initial product is subtracted
from the base, W = R + s B0 A0, so a trained adapter is useless without R. R is never saved. Instead A0 and B0 are saved
in scratch, under a name derived from their inputs, so every attempt gets the same R. The artifact is an ordinary
adapter of W with twice the rank: s (B A - B0 A0) = s [B, -B0] [A; A0].
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from finetune_api.tuning import LoraSpec
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

ITERATIONS = 16
"""Iterations of the randomised SVD: they give the leading singular vectors to about 1e-6."""
ADAPTER = "default"


def initial_file(scratch: Path, base_digest: str, lora: LoraSpec, seed: int) -> Path:
    """The file with A0 and B0 for these settings."""
    settings = json.dumps([base_digest, lora.rank, lora.alpha, lora.rs_lora, sorted(lora.targets), seed])
    return scratch / f"pissa-{hashlib.sha256(settings.encode()).hexdigest()[:32]}.safetensors"


def make_initial_file(model: PeftModel, file: Path, seed: int) -> None:
    """Write A0 and B0 of every adapted layer, unless the file exists."""
    if not file.is_file():
        _save(dict(_decompose(model, seed)), file)


def initialize(model: PeftModel, file: Path) -> None:
    """Set A and B of every adapted layer to A0 and B0, and subtract their product from the base."""
    parts = load_file(file)
    with torch.no_grad():
        for name, layer in _layers(model):
            a, b = parts[f"{name}.A"], parts[f"{name}.B"]
            weight = layer.get_base_layer().weight
            for matrix, value in ((layer.lora_A[ADAPTER].weight, a), (layer.lora_B[ADAPTER].weight, b)):
                matrix.data = value.to(matrix)
            product = layer.scaling[ADAPTER] * (b.to(weight.device) @ a.to(weight.device))
            weight.data = (weight.float() - product).to(weight.dtype)


def convert_to_lora(folder: Path, file: Path) -> None:
    """Rewrite a saved adapter as an ordinary LoRA adapter of the untouched base."""
    parts, weights_file = load_file(file), folder / "adapter_model.safetensors"
    weights = load_file(weights_file)
    for name in list(weights):
        layer, _, rest = name.removeprefix("base_model.model.").rpartition(".lora_")
        if rest == "A.weight":
            weights[name] = torch.cat([weights[name], parts[f"{layer}.A"].to(weights[name])], dim=0)
        elif rest == "B.weight":
            weights[name] = torch.cat([weights[name], -parts[f"{layer}.B"].to(weights[name])], dim=1)
    save_file(weights, weights_file, metadata={"format": "pt"})
    config_file = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    # The scale s must not change: alpha / rank, or alpha / sqrt(rank) with rsLoRA
    factor = 2**0.5 if config.get("use_rslora") else 2
    config["r"], config["lora_alpha"] = 2 * config["r"], factor * config["lora_alpha"]
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _decompose(model: PeftModel, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, matrix) for A0 and B0 of each layer: s B0 A0 is the best approximation of W with this rank."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, layer in _layers(model):
            weight = layer.get_base_layer().weight.detach().float()
            u, s, v = torch.svd_lowrank(weight, q=min(layer.r[ADAPTER], *weight.shape), niter=ITERATIONS)
            root = torch.sqrt(s / layer.scaling[ADAPTER])
            missing = layer.r[ADAPTER] - len(s)  # the rank is larger than the layer's own: pad with zeros
            a = torch.nn.functional.pad(root[:, None] * v.T, (0, 0, 0, missing))
            b = torch.nn.functional.pad(u * root, (0, missing))
            yield f"{name}.A", a.contiguous().cpu()
            yield f"{name}.B", b.contiguous().cpu()


def _save(parts: dict[str, torch.Tensor], file: Path) -> None:
    """Complete or absent. Two jobs that write at the same time write the same content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=file.parent, prefix=".pissa-")
    os.close(handle)
    try:
        save_file(parts, staged)
        with open(staged, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(staged, file)
    finally:
        Path(staged).unlink(missing_ok=True)
