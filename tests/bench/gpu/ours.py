"""One case of our trainer, or of plain TRL, measured in this process.

Ours goes the way of a pod: prepare, then the stage's workflow with a `Run`. Two things differ. A model with random
weights is built on the GPU instead of being read from files. And the run ends after its last step: writing the artifact
of a whole model would take longer than all steps. A case through the launcher shows the rest (`launched`).
"""

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from finetune_api.contract import ResolvedJob
from finetune_api.status import Progress
from finetune_trainer.fetch import digests
from finetune_trainer.run import Run

from tests.bench.gpu.cases import SHAPES, Case
from tests.trainer.support import stages, tiny

WARM = 2
"""Steps that are not counted: compilation, and memory that is asked for the first time."""
GIB = 2**30
CLOSE = 0.005
"""Relative difference of two losses in bf16 that count as the same."""


class Measured(Exception):
    """The last step is done."""


class Clock:
    """The time after each step, when the GPU is done with it."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def tick(self) -> None:
        """A step is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of a step: the median of those that count."""
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(steps[min(WARM, len(steps) - 1) :])


def measure(case: Case, root: Path) -> dict[str, Any]:
    """Train, and say how fast and with how much memory."""
    match case.program:
        case "ours":
            return trained(case, root)
        case "trl":
            from tests.bench.gpu import plain_trl

            return plain_trl.trained(case, root)
        case "launcher":
            return launched(case, root)
        case "parity":
            return parity(case, root)
    raise AssertionError(case.program)


def volumes(case: Case, root: Path) -> None:
    """Models and rows. A model is a config, a tokenizer, and weights that only say their shapes (`built_on_device`)."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokens = tiny.tokenizer()
    special = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, "bos_token_id": None}
    kinds: dict[str, Any] = {"model": LlamaForCausalLM, "reward": LlamaForSequenceClassification}
    for name, kind in kinds.items():
        if name == "reward" and case.stage != "ppo":
            continue
        folder = root / "models" / name
        config = LlamaConfig(**{"vocab_size": len(tokens), **SHAPES[case.model], **special, "num_labels": 1})
        config.architectures = [kind.__name__]
        config.save_pretrained(folder)
        tokens.save_pretrained(folder)
        with torch.device("meta"):
            save_shapes(folder / "model.safetensors", kind(config))
    chance, rows = random.Random(1), case.batch * case.steps * (8 if case.packed else 1)
    written = [row(case, chance, index) for index in range(max(rows, case.batch * 2))]
    stages.save(root / "data" / f"{case.stage}.jsonl", written)


def save_shapes(file: Path, model: Any) -> None:
    """A file of safetensors with zeros in bf16, which take no room on the disk."""
    header: dict[str, Any] = {}
    end = 0
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    for name, weight in model.state_dict().items():
        if name not in tied:
            header[name] = {
                "dtype": "BF16",
                "shape": list(weight.shape),
                "data_offsets": [end, end + 2 * weight.numel()],
            }
            end += 2 * weight.numel()
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def prepared_run(case: Case, root: Path, **more: Any) -> Run:
    """The run, prepared. The zeros of `save_shapes` are not hashed: 16 GB take longer than the steps."""

    def by_name(file: Path, *_: Any) -> str:
        return hashlib.sha256(file.name.encode()).hexdigest()

    with mock.patch.object(digests, "_sha256", by_name):
        return tiny.make_run(root, job(case), **more)


def row(case: Case, chance: random.Random, index: int) -> dict[str, Any]:
    """A row of the stage. Its answer is much shorter than the cut-off in packs, else half of it or more, as random."""
    made = stages.row(case.stage, index)
    words = len(tiny.WORDS) if case.cutoff <= 128 else case.cutoff  # a word is about a token
    least, most = (words // 20 + 1, words // 2) if case.packed else (words // 2, words)
    if case.cutoff > 4096:  # rows that fill the cut-off
        least = most = words + words // 10

    def longer() -> str:
        return " ".join(chance.choices(tiny.WORDS, k=chance.randint(least, most)))

    if case.stage == "pt":
        return {"text": longer()}
    if case.stage == "ppo":
        return made
    for name in ("messages", "chosen", "rejected", "completion"):
        if name in made:
            made[name] = [*made[name][:-1], {"role": "assistant", "content": longer()}]
    return made


def job(case: Case) -> ResolvedJob:
    """The job of a case."""
    training = {
        "maxSteps": case.steps,
        "globalBatchSize": case.batch,
        "microBatchSize": case.micro,
        "cutoffLength": case.cutoff,
        "precision": case.precision,
        "optimizer": case.optimizer,
        "packing": "bfd" if case.packed else None if case.stage == "pt" else "none",
        "recompute": None,
        "learningRate": 1e-5,
    }
    answers = 8 if case.model == "tiny" else 64
    ppo = {"rolloutBatchSize": case.batch, "rolloutMicroBatchSize": case.batch, "epochs": 1, "maxNewTokens": answers}
    own = {"ppo": ppo} if case.stage == "ppo" else {}
    lora = {"lora": {"rank": 16}} if case.method != "full" else {}
    return stages.job(case.stage, case.method, training=training, tuning={"method": case.method, **lora}, **own)


@contextmanager
def built_on_device(seed: int = 0) -> Iterator[None]:
    """While this lasts, a model that is loaded is built from its config, with random weights, where it will be."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def instead(auto: Any) -> Any:
        def build(folder: Any, *, dtype: Any, output_loading_info: bool = False, **options: Any) -> Any:
            config = AutoConfig.from_pretrained(folder)
            if "num_labels" in options:
                config.num_labels = options["num_labels"]
            torch.manual_seed(seed)
            kept = {"attn_implementation": options.get("attn_implementation")}
            with device:
                model = auto.from_config(config, dtype=dtype, **kept)
            if options.get("quantization_config") is not None:
                model = _quantised(model, folder, dtype, options, from_pretrained[auto])
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            nothing: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
            return (model, nothing) if output_loading_info else model

        return build

    both = (AutoModelForCausalLM, AutoModelForSequenceClassification)
    from_pretrained = {auto: auto.from_pretrained for auto in both}
    patches = [mock.patch.object(auto, "from_pretrained", instead(auto)) for auto in both]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _quantised(model: Any, folder: Path, dtype: Any, options: dict[str, Any], load: Any) -> Any:
    """bitsandbytes quantises what it reads, so the built model is written first."""
    model.save_pretrained(folder)
    del model
    return load(folder, dtype=dtype, **options)


def trained(case: Case, root: Path) -> dict[str, Any]:
    """Our trainer."""
    volumes(case, root)
    clock, losses, trainers = Clock(), dict[int, float](), list[Any]()

    def report(progress: Progress) -> None:
        if progress.step == len(clock.times):
            clock.tick()
        elif progress.step and progress.loss:  # the step's line of the log
            losses[progress.step] = float(progress.loss)
            if progress.step == case.steps:
                raise Measured

    run = prepared_run(case, root, report_progress=report)
    memory = json.loads((run.folders.reports / "prepare.json").read_text())["memory"]
    began = time.perf_counter()
    with built_on_device(), watch_trainers(trainers), suppress(Measured):
        stages.train(run)
    trainer = trainers[-1]
    return {
        **result(clock, trainer.model, trainer.progress.counters.tokens / case.steps),
        "first_step": round(clock.times[1] - began, 1),
        "estimate_gib": round(memory["total"] / GIB, 2) if memory else None,
        "losses": [losses[step] for step in sorted(losses)],
        "attention": str(trainer.model.config.get_text_config()._attn_implementation),
        "gradient_checkpointing": bool(getattr(causal(trainer.model), "is_gradient_checkpointing", False)),
    }


def causal(model: Any) -> Any:
    """Without an adapter around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def watch_trainers(seen: list[Any]) -> Iterator[None]:
    """Keep the transformers' Trainers that workflows make."""
    from transformers import Trainer

    original = Trainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(self)
        original(self, *args, **kwargs)

    with mock.patch.object(Trainer, "__init__", init):
        yield


def result(clock: Clock, model: Any, tokens: float) -> dict[str, Any]:
    """What both programs say. ``tokens``: of a step, without padding."""
    weights = sum(weight.numel() for weight in causal(model).parameters())
    embedding = causal(model).get_input_embeddings().weight.numel()
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    out: dict[str, Any] = {
        "step_seconds": round(clock.seconds, 4),
        "tokens_per_step": round(tokens),
        "tokens_per_second": round(tokens / clock.seconds, 1),
        "weights": weights,
        "multiplied_weights": weights - (0 if tied else embedding),
        "peak_gib": None,
    }
    if torch.cuda.is_available():
        out["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        out["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    return out


def parity(case: Case, root: Path) -> dict[str, Any]:
    """The same rows, one a micro-batch and several: the same losses, if each document attends to itself alone."""
    together = trained(replace(case, program="ours"), root / "together")
    alone = trained(replace(case, program="ours", micro=1), root / "alone")
    pairs = list(zip(together["losses"], alone["losses"], strict=True))
    off = max(abs(one - other) / abs(other) for one, other in pairs)
    return {"pairs": pairs, "largest_difference": off, "attention": together["attention"], "same": off < CLOSE}


def launched(case: Case, root: Path) -> dict[str, Any]:
    """Our command line, with everything that a pod does: the launcher, a real model from files, and the artifact."""
    import yaml
    from transformers import AutoModelForCausalLM

    volumes(case, root)
    folder = root / "models" / "model"
    with built_on_device():
        options: dict[str, Any] = {"dtype": torch.float32}
        AutoModelForCausalLM.from_pretrained(folder, **options).save_pretrained(folder)
    document = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "gpu-check"},
        "spec": {
            "stage": case.stage,
            "model": {"source": "pvc://models/model"},
            "datasets": [stages.dataset(case.stage)],
            "tuning": {"method": case.method},
            "training": {
                "maxSteps": case.steps,
                "globalBatchSize": case.batch,
                "microBatchSize": case.micro,
                "cutoffLength": case.cutoff,
                "precision": case.precision,
            },
            "workspace": {"claimName": "workspace"},
        },
    }
    (root / "job.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "finetune_trainer", "train", "--job", str(root / "job.yaml")]
    command += ["--workspace", str(root / "workspace")]
    command += [f"--volume={name}={root / name}" for name in ("models", "data")]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-1500:]}")
    reports = root / "workspace" / "jobs" / "gpu-check" / "reports"
    got = json.loads((reports / "train_results.json").read_text())
    memory = json.loads((reports / "prepare.json").read_text())["memory"]
    return {
        "tokens_per_second": got["train_tokens_per_second"],
        "peak_gib": got.get("peak_gpu_memory_gib"),
        "estimate_gib": round(memory["total"] / GIB, 2) if memory else None,
        "losses": [got["final_loss"]],
        "whole_run": round(time.perf_counter() - began, 1),
    }
