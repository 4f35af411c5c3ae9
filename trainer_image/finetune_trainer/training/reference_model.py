"""The reference of stages dpo, kto and ppo: the frozen model that the policy is compared with.

Workflows make it before the trainer, and the trainer places it. If the job names no reference, it is the model as the
job received it, so the divergence from it is 0 before the first step:

- A new adapter adds nothing yet. The reference is the model with the adapter disabled.
- An adapter that training continues has a frozen copy beside it, under a name that peft does not list and so never
  saves. So has an adapter that starts from a part of the base's weights (PiSSA).
- A model that is trained whole or in part has a second, frozen model. The two share the weights that are not trained.
"""

import copy
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from finetune_api.contract import source_of
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedTokenizerBase

from finetune_trainer.model import base, merging, saved_adapter, sharding, trainable, vocabulary
from finetune_trainer.model.base import Precision
from finetune_trainer.model.model_files import BASE_ADAPTER
from finetune_trainer.run import Run
from finetune_trainer.training import logprobs
from finetune_trainer.training.trainer import BaseTrainer, Model

TRAINED, COPY = "default", "ref"
"""Names of the adapter that is trained and of its frozen copy."""


@dataclass
class Reference:
    """See the module. Either a model of its own, or the policy with another adapter, or with none."""

    model: Model | None = None
    adapter: str | None = None
    autocast: Callable[[], AbstractContextManager[None]] | None = None
    """The trainer's autocast, for a model of its own."""
    freed: bool = False

    def place(self, trainer: BaseTrainer) -> None:
        """Called once by the trainer: move the model to the trainer's device, sharded as the policy will be."""
        if self.model is None:
            _cast_copy(trainer.model)
            return
        self.model.eval()
        if trainer.is_fsdp_enabled:
            fsdp2_prepare_model(trainer.accelerator, self.model)
            return
        if not getattr(self.model, "is_quantized", False):  # a quantized model is on its device already
            cast(nn.Module, self.model).to(trainer.args.device)
        self.autocast = trainer.accelerator.autocast

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The reference, to be called like the policy, without gradients and without dropout. The policy is unchanged
        afterwards."""
        assert not self.freed
        model = self.model if self.model is not None else logprobs.unwrapped(policy)
        training = model.training
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.model is None:
                stack.enter_context(_active_adapter(model, self.adapter))
            elif self.autocast is not None:
                stack.enter_context(self.autocast())
            model.eval()
            try:
                yield model
            finally:
                model.train(training)
                if self.model is not None:
                    sharding.reshard(model)

    def free(self) -> None:
        """Free the memory, when nothing needs the reference any more."""
        self.model, self.freed = None, True
        gc.collect()  # the fused head makes a model refer to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def make(run: Run, model: Model, tokens: PreTrainedTokenizerBase, temperature: float = 1.0) -> Reference:
    """The reference of a policy that was just built. ``temperature``: that of both."""
    second: Model | None = None
    if run.prepared.reference is not None:
        second = _load(run, tokens)
    elif not isinstance(model, PeftModel):
        second = _frozen_copy(model, base.precision(run.job.training))
    logprobs.add_fused_head(model, temperature)
    if second is not None:
        logprobs.add_fused_head(second, temperature)
        return Reference(model=second)
    lora = run.job.tuning.lora
    if saved_adapter.mode_of(run.job) == "continue" or (lora is not None and lora.init == "pissa"):
        assert isinstance(model, PeftModel)
        copy_adapter(model)
        return Reference(adapter=COPY)
    return Reference()


def _frozen_copy(model: Model, precision: Precision) -> Model:
    """A frozen copy that shares the weights which are not trained. In 16 bit its linear layers have the values to which
    autocast would round their fp32 weights in each forward pass: half the memory, and the same numbers to the last
    bit."""
    shared: dict[int, Any] = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    second = copy.deepcopy(model, shared)
    second.requires_grad_(False)
    if precision in base.MIXED:
        for weight in trainable.autocast_weights(second):
            weight.data = weight.data.to(base.COMPUTED_IN[precision])
    return second


def _load(run: Run, tokens: PreTrainedTokenizerBase) -> Model:
    """The model that the job names, in the smallest number type that its precision allows, and quantized like the
    policy."""
    job, prepared = run.job, run.prepared
    folder = prepared.reference
    is_adapter = prepared.reference_base is not None
    assert folder is not None
    source = source_of(job, "reference") or folder.name
    earlier = [folder / BASE_ADAPTER] if is_adapter and (folder / BASE_ADAPTER).is_dir() else []
    # An adapter cannot be merged into quantized weights.
    quantization = job.tuning.quantization if job.tuning.method == "qlora" and not earlier else None
    dtype = trainable.load_dtype("lora", base.precision(job.training))
    origin: Path = prepared.reference_base or folder
    field = f"{job.stage}.reference"
    settings: dict[str, Any] = {
        "attention": job.model.attention,
        # model.trustRemoteCode is about the job's own model.
        "allow_remote_code": base.remote_code(job) and origin == prepared.model,
        "field": field,
    }
    if is_adapter and quantization is None:
        model: Model = merging.load_merged(origin, [*earlier, folder], source, "causal", dtype=dtype, **settings)
    else:
        model = loaded = base.load(origin, source, dtype, quantization=quantization, **settings)
        loaded.config.use_cache = False
        if is_adapter:
            vocabulary.grow(loaded, saved_adapter.embedding_rows(folder))
            model = saved_adapter.attach(loaded, folder, source, field=field)
    model.config.use_cache = False
    vocabulary.grow(logprobs.causal_lm(model), len(tokens))
    model.requires_grad_(False)
    return model


def copy_adapter(model: PeftModel) -> None:
    """Keep a frozen copy of the adapter's weights beside it."""
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    config = copy.deepcopy(model.peft_config[TRAINED])
    model.add_adapter(COPY, config)
    del model.peft_config[COPY]
    copies = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, weight in copies.items():
            if name in trained:
                weight.requires_grad_(trained[name])
            if (name_of_copy := _name_of_copy(name)) != name:
                copies[name_of_copy].data = weight.detach().clone()
                copies[name_of_copy].requires_grad_(False)


def _cast_copy(model: nn.Module) -> None:
    """The trainer has cast the trained adapter to its number type. The copy must be rounded the same way."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        copied = weights.get(_name_of_copy(name))
        if copied is not None and copied is not weight:
            copied.data = copied.data.to(weight.dtype)


def _name_of_copy(name: str) -> str:
    return re.sub(rf"\.{TRAINED}(?=\.|$)", f".{COPY}", name)


@contextmanager
def _active_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Compute with another adapter, or with none. The switches of peft also change which weights need gradients, which
    FSDP and DDP have fixed by then."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [name] if name else layer._active_adapter, name is None
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
