"""A model's answers to many prompts: the loop that sft's generation metrics and PPO's rollouts share.

Called between optimizer steps or after training, on every rank with its own prompts. The model is the trainer's own,
not the one wrapped by DDP. Its training mode and generation settings are restored afterwards. The caller enters
autocast (`accelerator.autocast`): in training, autocast wraps the forward pass of the trainer's model, and generation
calls the base model's own. With sharded weights all ranks call this function, and all generate as long as one of them
has prompts left.

The library's ``generate`` does the rest, because it knows the caches of all architectures. The model's own generation
settings (sampling, penalties for repetition) are not used: each token is the most likely one, after the ``processors``
have changed the logits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from finetune_trainer.collectives import all_gather
from finetune_trainer.model import sharding, stream
from finetune_trainer.runtime import gpumemory, heartbeat

Processors = Callable[[list[int], int], LogitsProcessorList]
"""(indices of the batch's prompts, width of the batch) -> processors that change the logits before the most likely
token is taken. A processor gets all ids so far, including the prompts padded to that width."""
Generate = Callable[..., torch.Tensor]


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    processors: Processors | None = None,
) -> list[list[int]]:
    """The answer to each prompt: at most ``max_new_tokens`` ids. A complete answer ends with a stop id.

    Prompts are sorted by length into batches of ``batch_size``, and of fewer when GPU memory runs out. An answer
    depends on its prompt, not on the other rows of its batch.
    """
    config = _config(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )
    answers: dict[int, list[int]] = {}
    # Longest first: batches have little padding, and running out of memory happens at the start.
    waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    sharded = sharding.is_sharded(model)
    with _generation_mode(model) as model_generate:
        while _any_waiting(waiting, model.device if sharded else None):
            heartbeat.beat("generate", heartbeat.last().step)
            batch = waiting[:batch_size]
            # A rank without prompts takes part with a dummy: sharded weights are gathered by all ranks or by none.
            batch_prompts = [prompts[index] for index in batch] or [[pad_id]]
            chosen = processors(batch, max(map(len, batch_prompts))) if processors and batch else None
            try:
                outputs = _generate_batch(model_generate, batch_prompts, pad_id, model.device, config, chosen, sharded)
            except RuntimeError as error:
                if not gpumemory.is_out_of_memory(error) or batch_size == 1 or sharded:
                    setattr(error, gpumemory.ROWS, batch_size)
                    raise
                outputs = None
            if outputs is None:  # here the error is gone, and the tensors that it referenced
                batch_size = max(1, batch_size // 2)
                torch.cuda.empty_cache()
                continue
            answers |= {index: _cut_after_stop(ids, stop_ids) for index, ids in zip(batch, outputs, strict=False)}
            waiting = waiting[batch_size:]
    return [answers[index] for index in range(len(prompts))]


def _config(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**settings)  # type: ignore[no-untyped-call]


def _any_waiting(waiting: list[int], device: torch.device | None) -> bool:
    """Whether this rank has prompts left. With a ``device`` for the exchange: whether any rank has."""
    if device is None:
        return bool(waiting)
    return any(has_prompts for (has_prompts,) in all_gather([bool(waiting)], device))


def _generate_batch(
    model_generate: Generate,
    prompts: list[list[int]],
    pad_id: int,
    device: torch.device,
    config: GenerationConfig,
    processors: LogitsProcessorList | None,
    sharded: bool,
) -> list[list[int]]:
    """The ids after each prompt. Prompts are padded on the left, so all answers begin in one column, and positions
    count from a prompt's own first token."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = model_generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(device),
        generation_config=config,
        logits_processor=processors or LogitsProcessorList(),
        stopping_criteria=StoppingCriteriaList([_Heartbeat()]),
        synced_gpus=sharded,
    )
    new_ids: list[list[int]] = output[:, width:].tolist()
    return new_ids


def _cut_after_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The answer without the padding after its first stop id."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
    return ids[: end + 1]


@contextmanager
def _generation_mode(model: Any) -> Iterator[Generate]:
    """The model's ``generate`` method, while the model is in evaluation mode (no dropout, no recomputation) and without
    its own generation settings."""
    # peft's own generate would restore the base model's settings. Its layers are part of the base model anyway.
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    training = [module for module in model.modules() if module.training]
    settings, base.generation_config = base.generation_config, _config()
    model.eval()
    try:
        with torch.no_grad(), stream.in_rows(base):
            yield _with_gathered_root(model, base.generate) if sharding.is_sharded(model) else base.generate
    finally:
        base.generation_config = settings
        for module in training:
            module.training = True
        sharding.reshard(model)


def _with_gathered_root(model: Any, model_generate: Generate) -> Generate:
    """``model_generate`` as a forward pass of the sharded model: FSDP gathers the root's weights for it. Layers gather
    their own."""

    def call(**inputs: Any) -> torch.Tensor:
        model.answer = model_generate
        register_fsdp_forward_method(model, "answer")
        try:
            output: torch.Tensor = model.answer(**inputs)
        finally:
            del model.answer
        return output

    return call


class _Heartbeat(StoppingCriteria):
    """Never stops. It sends a heartbeat for each token, because an answer may take longer than a rank may be silent."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        heartbeat.refresh()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
