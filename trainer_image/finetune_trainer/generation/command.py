"""Answer prompts with a job's artifact, or with its base model.

Called by ``python -m finetune_trainer generate``. Decoding is greedy, so that two answers are comparable.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from finetune_api.contract import ResolvedJob
from transformers import TextStreamer

from finetune_trainer.data.samples import Message
from finetune_trainer.data.templates import ChatTemplate
from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.model import base as base_model
from finetune_trainer.model import merging, model_files, saved_adapter, stream, tokenizer, vocabulary
from finetune_trainer.model.model_files import ADAPTER_CONFIG
from finetune_trainer.reporting.library_logs import silence_libraries
from finetune_trainer.workspace.folders import Folders

Emit = Callable[[str], None]
"""Takes the next part of an answer."""


@dataclass(frozen=True)
class Ready:
    """A model that is loaded, with its tokenizer and template."""

    model: Any
    tokens: Any
    template: ChatTemplate


def generate(job: ResolvedJob, folders: Folders, prompt: str, base: bool, max_new_tokens: int) -> str:
    """The answer of the artifact, or with ``base`` that of the base model. Raises as `load` does."""
    return answer(load(job, folders, base), prompt, max_new_tokens)


def answer_all(
    job: ResolvedJob, folders: Folders, prompts: Iterable[str], out: TextIO, base: bool, max_new_tokens: int
) -> None:
    """Answer each line of ``prompts``, a JSON text. The answers are lines of JSON in the same order: the parts of an
    answer as they come, ``{"text": …}``, and the whole at its end, ``{"answer": …}``. Raises as `load` does, and
    InvalidSpec for a line that is no text."""

    def write(line: dict[str, str]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    ready = load(job, folders, base)
    for line in prompts:
        write({"answer": answer(ready, _prompt(line), max_new_tokens, lambda text: write({"text": text}))})


def _prompt(line: str) -> str:
    try:
        prompt = json.loads(line)
    except ValueError:
        prompt = None
    if not isinstance(prompt, str):
        raise InvalidSpec(f"--prompts: {line.strip()[:100]} is no JSON text. Each line must be a prompt in quotes")
    return prompt


def load(job: ResolvedJob, folders: Folders, base: bool) -> Ready:
    """The model of the artifact, or the base model. Raises NotFound when there is no artifact yet, InvalidSpec for a
    reward model."""
    if job.stage == "rm" and not base:
        raise InvalidSpec(
            f"{job.name} is of stage rm: its artifact scores answers and can't write any. Use --checkpoint base"
        )
    if not base and not folders.artifact.is_dir():
        raise NotFound(f"{job.name} has no artifact yet: {folders.artifact} does not exist. Run the job first")
    silence_libraries()
    base_folder = model_files.locate(job, folders)
    base_model.check(base_folder, job.model.source, allow_remote_code=base_model.remote_code(job))
    name = job.template.name
    tokens = tokenizer.load(
        base_folder if base else folders.artifact,
        job.model,
        name,
        allow_remote_code=base_model.remote_code(job),
    )
    template = ChatTemplate(tokens, frozenset(tokenizer.stop_ids(tokens, base_folder, name)), job.template)
    model = _load(job, None if base else folders.artifact, base_folder, len(tokens))
    return Ready(model, tokens, template)


def answer(ready: Ready, prompt: str, max_new_tokens: int, emit: Emit | None = None) -> str:
    """The answer to one prompt. ``emit`` gets its parts while they are generated."""
    model, tokens, template = ready.model, ready.tokens, ready.template
    message: Message = {"role": "user", "content": prompt}
    ids = torch.tensor([template.ids(template.render_prompt([message]))], device=model.device)
    with torch.inference_mode(), stream.in_rows(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(template.stop_ids),
            pad_token_id=tokens.pad_token_id,
            streamer=_Parts(tokens, emit) if emit else None,
        )
    text = tokens.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return str(text).strip()


class _Parts(TextStreamer):
    """Hands on the text of an answer word by word, without the white space before it."""

    def __init__(self, tokens: Any, emit: Emit) -> None:
        super().__init__(tokens, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit
        self._begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        if not self._begun:
            text = text.lstrip()
        if text:
            self._begun = True
            self._emit(text)


def _load(job: ResolvedJob, artifact: Path | None, base_folder: Path, tokens: int) -> Any:
    """The artifact's model: a whole model, or the base with the artifact's adapters. Without an artifact, the base.
    ``tokens`` is the size of the tokenizer."""
    on_gpu = torch.cuda.is_available()
    dtype = base_model.COMPUTED_IN[base_model.best_precision()]
    whole = artifact if artifact and not (artifact / ADAPTER_CONFIG).is_file() else None
    model: Any = base_model.load(
        whole or base_folder,
        str(whole or job.model.source),
        dtype,
        attention=job.model.attention,
        allow_remote_code=base_model.remote_code(job),
    )
    if artifact and not whole:
        earlier = artifact / model_files.BASE_ADAPTER
        if earlier.is_dir():
            model = merging.merge(model, earlier)
        vocabulary.grow(model, max(tokens, saved_adapter.embedding_rows(artifact)))
        model = saved_adapter.attach(model, artifact, "artifact")
    elif artifact is None:
        vocabulary.grow(model, tokens)
    return model.to("cuda" if on_gpu else "cpu").eval()
