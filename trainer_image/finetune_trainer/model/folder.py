"""The folder a model comes in: Hugging Face layout, safetensors, and code only where two allow it.

Called before anything is loaded, so that a wrong folder is named within a second of start.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.contract import ResolvedJob

from finetune_trainer import prepared
from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.fetch import mounted
from finetune_trainer.run import Folders, check_readable

WEIGHTS = "*.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_ADAPTER = "base_adapter"
"""Beside an adapter: the one that was merged into the base before it was trained."""
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
CONFIGS = ("config.json", "tokenizer_config.json")
"""Files that may name code."""


def of_job(job: ResolvedJob, folders: Folders) -> Path:
    """The base model of a job: where preparing has it, or on its volume. Raises NotFound, AccessDenied, and InvalidSpec
    for one that nobody has fetched."""
    ready = prepared.read(folders, job)
    return ready.model if ready else mounted.find(job.model.source, folders.volumes)


def check(folder: Path, source: str, field: str = "model.source") -> dict[str, Any]:
    """Make sure that it can be loaded; returns config.json. Raises NotFound, InvalidSpec or AccessDenied, saying
    what is missing."""
    if not folder.is_dir():
        raise NotFound(f"{field}: {source} is a file; name the folder that holds config.json and *.safetensors")
    for file in _files(folder):
        check_readable(file, f"{field}: {source}")
    config_file = folder / "config.json"
    if not config_file.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
        raise NotFound(f"{field}: {source} has no config.json, so it is not a model folder; it has: {there}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidSpec(f"{field}: {source}/config.json is not JSON: {error}") from None
    if not any(folder.glob(WEIGHTS)):
        others = sorted(p.name for pattern in OTHER_WEIGHTS for p in folder.glob(pattern))
        if others:
            raise InvalidSpec(
                f"{field}: {source} has weights only as {others[0]}; only safetensors are loaded, as other formats"
                " can run code. Convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
            )
        raise NotFound(f"{field}: {source} has a config.json but no weights (*.safetensors)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise NotFound(f"{field}: {source} has no tokenizer (tokenizer.json)")
    return dict(config)


def may_run_code(job: ResolvedJob) -> bool:
    """A model's own code is run only where the job and the installation both say so."""
    return job.model.trust_remote_code and job.runtime.allow_remote_code


def check_code(folder: Path, source: str) -> None:
    """The code that a model brings lies beside it, all of it: what is run is what was fetched. Raises InvalidSpec."""
    for config, name in _code(folder):
        if "--" in name:
            raise InvalidSpec(
                f"model.source: {config} of {source} names code of another repository ({name}). Only code beside the"
                " model is run: copy its Python files there, and take what stands before -- out of the name"
            )
        file = name.split(".")[0] + ".py"
        if not (folder / file).is_file():
            raise InvalidSpec(f"model.source: {config} of {source} names the code {name}, but there is no {file}")


def code_hint(folder: Path) -> str:
    """Why a model may not load that is loaded without its code; empty for one that brings none."""
    if not _code(folder):
        return ""
    return (
        " It brings its own code, which is not run unless the job sets model.trustRemoteCode (a hub's model then needs"
        " a commit as its revision) and who installed the operator sets the chart's trainer.allowRemoteCode; without an"
        " operator that is --allow-remote-code."
    )


def _code(folder: Path) -> list[tuple[str, str]]:
    """(config file, file and class) for all that the folder's configs name, as "modeling_x.XModel"."""
    found = []
    for config in CONFIGS:
        try:
            content = json.loads((folder / config).read_bytes())
        except (FileNotFoundError, ValueError):
            continue
        named = content.get("auto_map") if isinstance(content, dict) else None
        for value in named.values() if isinstance(named, dict) else [named]:
            names = value if isinstance(value, list) else [value]
            found += [(config, name) for name in names if isinstance(name, str)]
    return found


def check_adapter(folder: Path, source: str, field: str = "tuning.adapter.source") -> dict[str, Any]:
    """Make sure that an adapter can be loaded without running code; returns adapter_config.json."""
    if not folder.is_dir():
        raise NotFound(f"{field}: {source} is a file; name the folder that holds {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_CONFIG).is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
        raise NotFound(f"{field}: {source} has no {ADAPTER_CONFIG}; it has: {there}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise NotFound(
            f"{field}: {source} has no {ADAPTER_WEIGHTS}; adapters in other formats are not loaded, as"
            " they can run code"
        )
    try:
        config = dict(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InvalidSpec(f"{field}: {source}/{ADAPTER_CONFIG} is not a JSON object: {error}") from None
    if config.get("peft_type") != "LORA":
        raise InvalidSpec(f"{field}: {source} is of type {config.get('peft_type')!r}; only LORA adapters can be used")
    return config


def is_adapter(folder: Path) -> bool:
    """Whether it is an adapter rather than a model, which may have one beside it in a folder of its own."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def scores(config: Mapping[str, Any]) -> bool:
    """Whether an adapter, by its config, is one of a model that scores texts."""
    return config.get("task_type") == "SEQ_CLS"


def digest(folder: Path) -> str:
    """sha256 over the names and contents of the files right in the folder, for provenance."""
    total = hashlib.sha256()
    for file in _files(folder):
        with file.open("rb") as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return "sha256:" + total.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def dtype(folder: Path) -> Any:
    """The number type that most of the weights are stored in."""
    import torch
    from safetensors import safe_open

    names = {"BF16": torch.bfloat16, "F16": torch.float16}
    with safe_open(sorted(folder.glob(WEIGHTS))[0], framework="pt") as weights:
        stored = weights.keys()
        kinds = [weights.get_slice(name).get_dtype() for name in stored]
    return names.get(max(set(kinds), key=kinds.count), torch.float32)
