"""A model's answers to many prompts: the one loop that sft's metrics and PPO's rollouts share.

Called between optimizer steps or after training, on every rank with its own prompts. The model comes as the trainer
holds it, not as DDP wraps it, and is left as it was: training mode and generation settings. The caller sets autocast
(`accelerator.autocast`): in training it is around the forward pass of the trainer's model, and this goes past it to the
base model's own. With sharded weights all ranks come here, and all generate as long as one of them does.

The library's ``generate`` does the rest: it knows the caches of all architectures. Its settings that a model brings
along (sampling, penalties for repetition) are left out, so that the answer is the likeliest token each time, over the
logits as the ``processors`` leave them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from finetune_trainer import gpumemory, heartbeat
from finetune_trainer.model import sharding
from finetune_trainer.stages.agree import share

Processors = Callable[[list[int], int], LogitsProcessorList]
"""(numbers of the batch's prompts, its width) -> what changes the logits before the likeliest token is taken. A
processor gets all ids so far, prompts padded to that width included."""


def answers(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    processors: Processors | None = None,
) -> list[list[int]]:
    """The answer to each prompt: up to ``max_new_tokens`` ids, the last of them a stop id where it came to an end.

    Prompts are sorted by length into batches of ``batch_size``, fewer once the GPU has no room for as many: an answer
    hangs on its prompt, not on who shares its batch.
    """
    config = _settings(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )
    found: dict[int, list[int]] = {}
    # Longest first: little padding, and what doesn't fit into memory shows at once.
    waiting = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    sharded = sharding.is_sharded(model)
    with _answering(model) as generate:
        while _anybody(waiting, model.device if sharded else None):
            heartbeat.beat("generate", heartbeat.last().step)
            batch = waiting[:batch_size]
            # A rank that has none left still takes part: sharded weights are gathered by all or by none.
            asked = [prompts[number] for number in batch] or [[pad_id]]
            chosen = processors(batch, max(map(len, asked))) if processors and batch else None
            try:
                made = _batch(generate, asked, pad_id, model.device, config, chosen, sharded)
            except RuntimeError as error:
                if not gpumemory.is_out_of_memory(error) or batch_size == 1 or sharded:
                    setattr(error, gpumemory.ROWS, batch_size)
                    raise
                made = None
            if made is None:  # after the error is gone, and with it what it held
                batch_size = max(1, batch_size // 2)
                torch.cuda.empty_cache()
                continue
            found |= {number: _ended(ids, stop_ids) for number, ids in zip(batch, made, strict=False)}
            waiting = waiting[batch_size:]
    return [found[number] for number in range(len(prompts))]


def _settings(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**settings)  # type: ignore[no-untyped-call]


def _anybody(waiting: list[int], device: torch.device | None) -> bool:
    """Whether there is something to do: on any rank, where ``device`` is given to ask the others on."""
    if device is None:
        return bool(waiting)
    return any(one for (one,) in share([bool(waiting)], device))


def _batch(
    generate: Callable[..., torch.Tensor],
    prompts: list[list[int]],
    pad_id: int,
    device: torch.device,
    config: GenerationConfig,
    processors: LogitsProcessorList | None,
    sharded: bool,
) -> list[list[int]]:
    """What follows each prompt. Padded at the left: all answers begin in one column, and positions count from a
    prompt's own first token."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(device),
        generation_config=config,
        logits_processor=processors or LogitsProcessorList(),
        stopping_criteria=StoppingCriteriaList([_Alive()]),
        synced_gpus=sharded,
    )
    answered: list[list[int]] = output[:, width:].tolist()
    return answered


def _ended(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Without what fills a batch up after the answer's end."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
    return ids[: end + 1]


@contextmanager
def _answering(model: Any) -> Iterator[Callable[..., torch.Tensor]]:
    """The model's ``generate`` meanwhile: without dropout and recomputation (both are for training), and without the
    model's own settings."""
    # peft's own generate sets the base model's settings anew; its layers are in there anyway.
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    training = [module for module in model.modules() if module.training]
    settings, base.generation_config = base.generation_config, _settings()
    model.eval()
    try:
        with torch.no_grad():
            yield _gathering(model, base.generate) if sharding.is_sharded(model) else base.generate
    finally:
        base.generation_config = settings
        for module in training:
            module.training = True
        sharding.reshard(model)


def _gathering(model: Any, generate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """As a forward pass of ``model``: its root's weights are whole meanwhile. Layers gather their own."""

    def whole(**inputs: Any) -> torch.Tensor:
        model.answer = generate
        register_fsdp_forward_method(model, "answer")
        try:
            output: torch.Tensor = model.answer(**inputs)
        finally:
            del model.answer
        return output

    return whole


class _Alive(StoppingCriteria):
    """Stops nothing: each token is a sign of life, as an answer may take long."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        heartbeat.alive()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
