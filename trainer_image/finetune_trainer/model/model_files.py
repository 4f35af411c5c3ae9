"""The directory of a model or adapter: Hugging Face layout, safetensors, and code only where it may run.

Checked before anything is loaded, so a wrong directory is reported within a second of the start.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.contract import ResolvedJob

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.fetch import mounted
from finetune_trainer.workspace import prepared
from finetune_trainer.workspace.files import parse_object
from finetune_trainer.workspace.folders import Folders, check_readable

WEIGHTS = "*.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VALUE_HEAD = "value_head.safetensors"
"""The head of a reward model that LLaMA-Factory trained, beside an adapter or a model that does not have it."""
BASE_ADAPTER = "base_adapter"
"""Subdirectory of an adapter with the earlier adapter that was merged into its base."""
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
CONFIGS = ("config.json", "tokenizer_config.json")
"""Files that may name code."""
SHOWN = 20


def locate(job: ResolvedJob, folders: Folders) -> Path:
    """The base model of a job: the prepared copy, or the directory on its volume. Raises NotFound, AccessDenied, and
    InvalidSpec for a model that has not been fetched."""
    ready = prepared.read(folders, job)
    return ready.model if ready else mounted.find(job.model.source, folders.volumes)


def check_model(folder: Path, source: str, field: str = "model.source") -> dict[str, Any]:
    """The content of config.json, after checking that the directory has all parts of a model. Raises NotFound,
    InvalidSpec or AccessDenied."""
    if not folder.is_dir():
        raise NotFound(f"{field}: {source} is a file. Name the folder that holds config.json and *.safetensors")
    for file in _files(folder):
        check_readable(file, f"{field}: {source}")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise NotFound(
            f"{field}: {source} has no config.json, so it is not a model folder. It has: {_list_names(folder)}"
        )
    try:
        config = parse_object(config_file.read_bytes())
    except ValueError as error:
        raise InvalidSpec(f"{field}: {source}/config.json is not a JSON object: {error}") from None
    if not any(folder.glob(WEIGHTS)):
        unsupported = sorted(p.name for pattern in OTHER_WEIGHTS for p in folder.glob(pattern))
        if unsupported:
            raise InvalidSpec(
                f"{field}: {source} has weights only as {unsupported[0]}, but only safetensors are loaded, because"
                " other formats can run code. Convert them:"
                " AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
            )
        raise NotFound(f"{field}: {source} has a config.json but no weights (*.safetensors). Copy them there")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise NotFound(f"{field}: {source} has no tokenizer (tokenizer.json). Copy it there")
    return config


def remote_code(job: ResolvedJob) -> bool:
    """Whether a model's own code may run: only if the job and the installation both allow it."""
    return job.model.trust_remote_code and job.runtime.allow_remote_code


def check_remote_code(folder: Path, source: str) -> None:
    """All code that the model's configs name is in the directory, so the code that runs is the code that was fetched.
    Raises InvalidSpec."""
    for config, name in _named_code(folder):
        if "--" in name:
            raise InvalidSpec(
                f"model.source: {config} of {source} names code of another repository ({name}). Only code in the"
                " model's folder runs. Copy its Python files there, and remove everything up to -- from the name"
            )
        file = name.split(".")[0] + ".py"
        if not (folder / file).is_file():
            raise InvalidSpec(
                f"model.source: {config} of {source} names the code {name}, but there is no {file}. Copy it there"
            )


def remote_code_hint(folder: Path) -> str:
    """How to allow the model's own code, for the message of a model that does not load without it. Empty for a model
    without code."""
    if not _named_code(folder):
        return ""
    return (
        " It brings its own code, which is not run unless the job sets model.trustRemoteCode (a hub's model then needs"
        " a commit as its revision) and the installation sets the chart's trainer.allowRemoteCode (without an operator:"
        " --allow-remote-code)."
    )


def _named_code(folder: Path) -> list[tuple[str, str]]:
    """(config file, file and class) for all code that the configs name, as "modeling_x.XModel"."""
    code = []
    for config in CONFIGS:
        try:
            content = parse_object((folder / config).read_bytes())
        except (FileNotFoundError, ValueError):
            continue
        auto_map = content.get("auto_map")
        for value in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
            names = value if isinstance(value, list) else [value]
            code += [(config, name) for name in names if isinstance(name, str)]
    return code


def check_adapter(folder: Path, source: str, field: str = "tuning.adapter.source") -> dict[str, Any]:
    """The content of adapter_config.json, after checking that the adapter loads without running code. Raises NotFound,
    InvalidSpec."""
    if not folder.is_dir():
        raise NotFound(f"{field}: {source} is a file. Name the folder that holds {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise NotFound(f"{field}: {source} has no {ADAPTER_CONFIG}. It has: {_list_names(folder)}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise NotFound(
            f"{field}: {source} has no {ADAPTER_WEIGHTS}. Adapters in other formats are not loaded, because they can"
            " run code. Convert it to safetensors"
        )
    try:
        config = parse_object((folder / ADAPTER_CONFIG).read_bytes())
    except ValueError as error:
        raise InvalidSpec(f"{field}: {source}/{ADAPTER_CONFIG} is not a JSON object: {error}") from None
    if config.get("peft_type") != "LORA":
        raise InvalidSpec(
            f"{field}: {source} is an adapter of type {config.get('peft_type')!r}, but only LORA adapters are supported"
        )
    return config


def is_adapter(folder: Path) -> bool:
    """Whether the directory itself is an adapter. A model may have an adapter in a subdirectory."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def is_reward_adapter(config: Mapping[str, Any]) -> bool:
    """Whether an adapter with this config belongs to a reward model."""
    return config.get("task_type") == "SEQ_CLS"


def has_value_head(folder: Path) -> bool:
    """Whether the head of a reward model is in a file of its own."""
    return (folder / VALUE_HEAD).is_file()


def digest(folder: Path) -> str:
    """sha256 over the names and contents of the files directly in the directory."""
    total = hashlib.sha256()
    for file in _files(folder):
        with file.open("rb") as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return "sha256:" + total.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _list_names(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())[:SHOWN]) or "nothing"


def stored_dtype(folder: Path) -> Any:
    """The number type (torch.dtype) in which most of the weights are stored."""
    import torch
    from safetensors import safe_open

    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16}
    with safe_open(sorted(folder.glob(WEIGHTS))[0], framework="pt") as weights:
        names = weights.keys()
        stored = [weights.get_slice(name).get_dtype() for name in names]
    return dtypes.get(max(set(stored), key=stored.count), torch.float32)
