"""Ask the base model, or what a job made of it, a question.

Called by ``python -m finetune_trainer generate``. Greedy, so that two answers can be compared.
"""

from typing import Any

import torch
from finetune_api.contract import ResolvedJob
from peft import PeftModel

from finetune_trainer.data.formats import Message
from finetune_trainer.errors import NotFound
from finetune_trainer.model import base as base_model
from finetune_trainer.model import tokenizer
from finetune_trainer.reporting.quiet import quiet
from finetune_trainer.run import Folders


def generate(job: ResolvedJob, folders: Folders, prompt: str, base: bool, max_new_tokens: int) -> str:
    """The answer of the artifact, or of the base model with ``base``. Raises NotFound when there is no artifact yet."""
    if not base and not folders.artifact.is_dir():
        raise NotFound(f"{job.name} has no artifact yet: {folders.artifact} is not there")
    quiet()
    origin = folders.find(job.model.source)
    base_model.check(origin, job.model.source)
    tokens = tokenizer.load(origin if base else folders.artifact)
    template = tokenizer.template(tokens, origin)
    model = _model(job, folders, base)
    question: Message = {"role": "user", "content": prompt}
    ids = torch.tensor([template.ids(template.render([question], ask=True))], device=model.device)
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


def _model(job: ResolvedJob, folders: Folders, base: bool) -> Any:
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    if base or job.tuning.method == "lora":
        model: Any = base_model.load(folders.find(job.model.source), job.model.source, dtype)
        if not base:
            model = PeftModel.from_pretrained(model, folders.artifact)
    else:
        model = base_model.load(folders.artifact, str(folders.artifact), dtype)
    return model.to("cuda" if on_gpu else "cpu").eval()
