"""Ask the base model, or what a job made of it, a question.

Called by ``python -m finetune_trainer generate``. Greedy, so that two answers can be compared.
"""

from pathlib import Path
from typing import Any

import torch
from finetune_api.contract import ResolvedJob

from finetune_trainer.data.samples import Message
from finetune_trainer.data.templates import Template
from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.model import base as base_model
from finetune_trainer.model import build, tokenizer, vocabulary
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model.folder import ADAPTER_CONFIG
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Folders


def generate(job: ResolvedJob, folders: Folders, prompt: str, base: bool, max_new_tokens: int) -> str:
    """The answer of the artifact, or of the base model with ``base``. Raises NotFound when there is no artifact yet,
    InvalidSpec for one that gives no answers."""
    if job.stage == "rm" and not base:
        raise InvalidSpec(f"{job.name} is of stage rm: what it makes scores answers and can't write any")
    if not base and not folders.artifact.is_dir():
        raise NotFound(f"{job.name} has no artifact yet: {folders.artifact} is not there")
    quiet()
    origin = model_folder.of_job(job, folders)
    base_model.check(origin, job.model.source, allow_remote_code=base_model.remote_code(job))
    name = job.template.name
    tokens = tokenizer.load(
        origin if base else folders.artifact,
        job.model,
        name,
        allow_remote_code=base_model.remote_code(job),
    )
    template = Template(tokens, frozenset(tokenizer.stop_ids(tokens, origin, name)), job.template)
    model = _model(job, None if base else folders.artifact, origin, len(tokens))
    question: Message = {"role": "user", "content": prompt}
    ids = torch.tensor([template.ids(template.ask([question]))], device=model.device)
    with torch.inference_mode():
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
        )
    answer: str = tokens.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return answer.strip()


def _model(job: ResolvedJob, artifact: Path | None, origin: Path, tokens: int) -> Any:
    """The base, or with ``artifact`` what was made of it."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    whole = artifact if artifact and not (artifact / ADAPTER_CONFIG).is_file() else None
    model: Any = base_model.load(
        whole or origin,
        str(whole or job.model.source),
        dtype,
        attention=job.model.attention,
        allow_remote_code=base_model.remote_code(job),
    )
    if artifact and not whole:
        earlier = artifact / model_folder.BASE_ADAPTER
        if earlier.is_dir():
            model = build.merge_in_memory(model, earlier)
        vocabulary.grow(model, max(tokens, build.rows(artifact)))
        model = build.attach(model, artifact, "artifact")
    elif artifact is None:
        vocabulary.grow(model, tokens)
    return model.to("cuda" if on_gpu else "cpu").eval()
