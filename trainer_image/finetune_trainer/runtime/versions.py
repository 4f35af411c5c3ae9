"""Versions of the libraries that decide what training computes."""

from functools import cache
from importlib import metadata

PACKAGES = ("finetune-trainer", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


@cache
def versions() -> dict[str, str]:
    """Package -> version."""
    return {package: metadata.version(package) for package in PACKAGES}
