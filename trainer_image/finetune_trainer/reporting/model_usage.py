"""How an artifact is loaded and used, as the code that its card shows.

Called by `model_card`. It needs transformers and peft alone, and does what this trainer does to load what it made: an
adapter goes on the base model after one that was merged into that before it was trained, and on embeddings of as many
rows as it brings.
"""

from typing import Any

from finetune_api.contract import ResolvedJob

CAUSAL, SCORES = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
_ASK = """
question = [{system}{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))"""
_CONTINUE = """
inputs = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))"""
_SCORE = """
import torch

model.config.pad_token_id = tokenizer.pad_token_id  # by which it finds a text's end
answered = [{system}{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]
ids = tokenizer.apply_chat_template(answered, return_dict=True)["input_ids"]
# As in training, an answer ends at the token that stops it, not at what the template puts after it.
end = max((at for at, token in enumerate(ids) if token in {stops}), default=len(ids) - 1) + 1
score = model.eval()(torch.tensor([ids[:end]])).logits[0, 0].item()
print(score)  # the higher, the better; it compares answers to one question"""


def code(job: ResolvedJob, provenance: dict[str, Any]) -> str:
    """Python that loads the artifact from the folder it is run in, and talks to it as its rows did."""
    scores = job.stage == "rm"
    adapters = provenance.get("adapters")
    load = _adapter(job.model.source, scores, adapters) if adapters else _model(scores)
    use = _CONTINUE if job.stage == "pt" else _talk(_SCORE if scores else _ASK, provenance["template"])
    return f"{load}\n{use}"


def _talk(use: str, template: dict[str, Any]) -> str:
    system = template.get("defaultSystem")
    first = f'{{"role": "system", "content": {system!r}}}, ' if system else ""
    return use.format(system=first, stops=template.get("stopIds", []))


def _model(scores: bool) -> str:
    kind = SCORES if scores else CAUSAL
    return "\n".join(
        [
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained(".")',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
        ]
    )


def _adapter(source: str, scores: bool, adapters: list[dict[str, Any]]) -> str:
    """``adapters`` as `artifact` tells them, in the order in which they go on the base."""
    *earlier, last = adapters
    # What answers is given its head for scores when all that was learnt before is in it.
    answers_first = scores and not all(one["scores"] for one in earlier)
    first = SCORES if scores and not answers_first else CAUSAL
    kinds = sorted({first, SCORES} if scores else {first})
    lines = [
        "from peft import PeftModel",
        f"from transformers import {', '.join(kinds)}, AutoTokenizer",
        "",
        f"base = {_load(first)}  # BASE: a copy of {source}",
    ]
    for one in earlier:
        lines += [*_grow(one), f'base = PeftModel.from_pretrained(base, "{one["folder"]}").merge_and_unload()']
    if answers_first:
        lines += [
            "answers = base",
            f"base = {_load(SCORES)}",
            "setattr(base, base.base_model_prefix, answers.base_model)  # all but its head",
        ]
    lines += [*_grow(last), f'model = PeftModel.from_pretrained(base, "{last["folder"]}")']
    return "\n".join([*lines, 'tokenizer = AutoTokenizer.from_pretrained(".")'])


def _load(kind: str) -> str:
    return f"{kind}.from_pretrained(BASE{', num_labels=1' if kind == SCORES else ''})"


def _grow(adapter: dict[str, Any]) -> list[str]:
    """Before an adapter that brings embeddings of its own: they may have more rows than the base's."""
    return [f"base.resize_token_embeddings({adapter['embeddings']})"] if adapter["embeddings"] else []
