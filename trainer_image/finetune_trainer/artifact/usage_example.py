"""The code of the model card: how to load and use the artifact.

Called by `model_card`. The code needs only transformers and peft, and loads the artifact as this trainer does: an
adapter is applied after the adapters that were merged into the base before it was trained, and to embeddings that have
as many rows as it has.
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

model.config.pad_token_id = tokenizer.pad_token_id  # by which the model finds the end of a text
answered = [{system}{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]
ids = tokenizer.apply_chat_template(answered, return_dict=True)["input_ids"]
# As in training, an answer ends at its stop token. The template may add more after it.
end = max((at for at, token in enumerate(ids) if token in {stops}), default=len(ids) - 1) + 1
score = model.eval()(torch.tensor([ids[:end]])).logits[0, 0].item()
print(score)  # higher is better; compare only scores of answers to the same question"""


def usage_example(job: ResolvedJob, provenance: dict[str, Any]) -> str:
    """Python code that loads the artifact from the current directory and uses it with a prompt in the format of its
    training data."""
    scores = job.stage == "rm"
    adapters = provenance.get("adapters")
    load = _adapter(job.model.source, scores, adapters) if adapters else _model(scores)
    use = _CONTINUE if job.stage == "pt" else _chat(_SCORE if scores else _ASK, provenance["template"])
    return f"{load}\n{use}"


def _chat(use: str, template: dict[str, Any]) -> str:
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
    """Code that loads an adapter. ``adapters`` are from the provenance, in the order in which they are applied."""
    *earlier, last = adapters
    # Adapters of a causal model are merged before the model gets its score head.
    causal_first = scores and not all(adapter["scores"] for adapter in earlier)
    first = SCORES if scores and not causal_first else CAUSAL
    kinds = sorted({first, SCORES} if scores else {first})
    lines = [
        "from peft import PeftModel",
        f"from transformers import {', '.join(kinds)}, AutoTokenizer",
        "",
        f"base = {_load(first)}  # BASE: a copy of {source}",
    ]
    for adapter in earlier:
        load = f'base = PeftModel.from_pretrained(base, "{adapter["folder"]}").merge_and_unload()'
        lines += [*_resize(adapter), load]
    if causal_first:
        lines += [
            "answers = base",
            f"base = {_load(SCORES)}",
            "setattr(base, base.base_model_prefix, answers.base_model)  # all but its head",
        ]
    lines += [*_resize(last), f'model = PeftModel.from_pretrained(base, "{last["folder"]}")']
    return "\n".join([*lines, 'tokenizer = AutoTokenizer.from_pretrained(".")'])


def _load(kind: str) -> str:
    return f"{kind}.from_pretrained(BASE{', num_labels=1' if kind == SCORES else ''})"


def _resize(adapter: dict[str, Any]) -> list[str]:
    """Code before an adapter with its own embeddings: they may have more rows than those of the base."""
    return [f"base.resize_token_embeddings({adapter['embeddings']})"] if adapter["embeddings"] else []
