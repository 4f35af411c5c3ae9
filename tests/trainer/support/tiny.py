"""A language model small enough to train in seconds, its chat tokenizer, and a Run by hand, its data prepared.

Shared by the tests of the trainer. Everything is made here from a seed: nothing is downloaded.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.contract import AttemptFacts, ResolvedJob, resolve
from finetune_api.job import FineTuneJob
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.status import Progress
from finetune_trainer.run import Run, ignore
from finetune_trainer.workspace import prepared as prepared_job
from finetune_trainer.workspace.folders import Folders

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta"]


def tokenizer(template: str | None = CHATML) -> Any:
    """Byte-level BPE with a few merges, so that tokens can join across boundaries as in real tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["user assistant system\n\n\n\n", *(f"say {word}" for word in WORDS)] * 4, trainer)
    fast: Any = PreTrainedTokenizerFast
    made = fast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = template
    return made


def save_model(folder: Path, *, template: str | None = CHATML, seed: int = 0, **settings: Any) -> Path:
    """A two-layer Llama with random weights in Hugging Face layout."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokens = tokenizer(template)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokens),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
            "bos_token_id": None,
            **settings,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def conversation(index: int) -> dict[str, Any]:
    """Row ``index`` of the data: rows differ in length, and the answer can be learnt from the question."""
    word = WORDS[index % len(WORDS)]
    times = 1 + index % 3
    return {
        "messages": [
            {"role": "user", "content": f"say {word} {times}"},
            {"role": "assistant", "content": " ".join([word] * times)},
        ]
    }


def save_rows(file: Path, rows: int = 24) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(conversation(i)) + "\n" for i in range(rows)))
    return file


def save_documents(file: Path, documents: int = 24) -> Path:
    """Text for stage pt, of lengths from a few tokens to many."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + 3 * (i % 9))) for i in range(documents)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def job(**sections: Any) -> ResolvedJob:
    """The resolved job for the model and rows of the fixture ``root``. Sections replace those here."""
    training = {
        "maxSteps": 6,
        "globalBatchSize": 8,
        "microBatchSize": 4,
        "cutoffLength": 128,
        "learningRate": 0.01,
        "recompute": "none",
        "logEverySteps": 1,
        "warmupRatio": 0.0,
        **sections.pop("training", {}),
    }
    spec = {
        "stage": "sft",
        "model": {"source": "pvc://models/model"},
        "datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}],
        "workspace": {"claimName": "kept"},
        "training": {name: value for name, value in training.items() if value is not None},
        **sections,
    }
    return resolve(
        FineTuneJob.model_validate(
            {
                "apiVersion": "finetune-operator.io/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": "tiny"},
                "spec": spec,
            }
        )
    )


def make_run(
    root: Path,
    resolved: ResolvedJob,
    *,
    attempt: int = 1,
    rank: int = 0,
    world_size: int = 1,
    workspace: str = "work",
    **more: Callable[..., Any],
) -> Run:
    """A Run as the worker makes it, prepared as by `train`. ``root`` has the volumes and gets the workspace."""
    from finetune_trainer.fetch import FetchContext
    from finetune_trainer.prepare import pipeline

    folder = root / workspace / "jobs" / resolved.name
    folders = Folders(
        workspace=root / workspace,
        job=folder,
        checkpoints=folder / "checkpoints",
        run_checkpoints=folder / "checkpoints" / f"{attempt}-run{attempt}",
        artifact=folder / "artifact",
        reports=folder / "reports",
        volumes={"data": root / "data", "models": root / "models"},
    )
    folders.run_checkpoints.mkdir(parents=True, exist_ok=True)
    folders.reports.mkdir(parents=True, exist_ok=True)
    facts = AttemptFacts(
        namespace="default", name=resolved.name, uid="12345-uid", attempt=attempt, job_name=f"tiny-12345-{attempt}"
    )
    places = FetchContext(folders.workspace / "cache", folders.volumes, root / "configmaps", f"run{attempt}")
    prepared = prepared_job.read(folders, resolved) or pipeline.prepare(
        resolved, folders, f"run{attempt}", places, ignore, ignore
    )
    run = Run(
        job=resolved,
        attempt=facts,
        run_id=f"run{attempt}",
        folders=folders,
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        micro_batch=first_micro_batch(resolved.training) or MicroBatch(1),
        prepared=prepared,
    )
    return replace(run, **more)  # type: ignore[arg-type]


def stopped_at(run: Run, step: int, **more: object) -> Run:
    """The run, told to stop while it does the step after ``step``."""
    stop = False

    def progress(report: Progress) -> None:
        nonlocal stop
        stop = report.step >= step

    return replace(run, stop_requested=lambda: stop, report_progress=progress, **more)  # type: ignore[arg-type]


def losses(run: Run) -> list[float]:
    """The loss of every logged step."""
    return logged(run, "loss")


def logged(run: Run, name: str) -> list[float]:
    """What trainer_log.jsonl says of a metric."""
    lines = (run.folders.reports / "trainer_log.jsonl").read_text().splitlines()
    return [entry[name] for entry in map(json.loads, lines) if name in entry]
