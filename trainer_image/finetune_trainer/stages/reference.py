"""The reference of stages dpo, kto and ppo: the model that a policy is compared with, which nothing trains.

Made by workflows before the trainer, and placed by it. Without one that the job names, it is the model as the job
received it, so divergence from it is 0 before the first step:

- a fresh adapter adds nothing yet, so the reference is the model with the adapter disabled;
- of an adapter that is trained on, and of one that starts with what it took out of the base (PiSSA), a frozen copy is
  kept beside it, under a name that peft doesn't list and so never saves;
- of a model trained whole or in part, a second one is kept; weights that aren't trained are there once.
"""

import copy
import gc
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from finetune_api.contract import source_of
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from finetune_trainer.model import adapters, base, build, sharding, vocabulary
from finetune_trainer.model.base import Precision
from finetune_trainer.model.folder import BASE_ADAPTER
from finetune_trainer.run import Run
from finetune_trainer.stages import logprobs

TRAINED, COPY = "default", "ref"
"""Names of the adapter that is trained and of its frozen copy."""


@dataclass
class Reference:
    """See the module. Either a model of its own, or the policy with another adapter, or with none."""

    model: Any = None
    adapter: str | None = None
    autocast: Any = None
    """Of a model of its own: what the trainer computes in."""
    given_back: bool = False

    def place(self, trainer: Any) -> None:
        """Called by the trainer once it is made: onto its device, in shares where the policy will be."""
        if self.model is None:
            _cast_copy(trainer.model)
            return
        self.model.eval()
        if trainer.is_fsdp_enabled:
            fsdp2_prepare_model(trainer.accelerator, self.model)
            return
        if not getattr(self.model, "is_quantized", False):  # those are where they were loaded to
            self.model.to(trainer.args.device)
        self.autocast = trainer.accelerator.autocast

    @contextmanager
    def in_place(self, policy: Any) -> Iterator[Any]:
        """The reference, to be called as the policy is. Without gradients and without dropout; the policy is as it was
        afterwards."""
        assert not self.given_back
        model = self.model if self.model is not None else logprobs.unwrapped(policy)
        training = model.training
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.model is None:
                stack.enter_context(_adapter(model, self.adapter))
            elif self.autocast is not None:
                stack.enter_context(self.autocast())
            model.eval()
            try:
                yield model
            finally:
                model.train(training)
                if self.model is not None:
                    sharding.reshard(model)

    def give_back(self) -> None:
        """Its memory, once all is known that it is asked for."""
        self.model, self.given_back = None, True
        gc.collect()  # the fused head makes a model refer to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def make(run: Run, model: Any, tokens: Any, temperature: float = 1.0) -> Reference:
    """The reference of a policy that was just built; ``temperature`` is that of both."""
    second = None
    if run.prepared.reference is not None:
        second = _load(run, tokens)
    elif not isinstance(model, PeftModel):
        second = _second(model, base.precision(run.job.training))
    for one in (model, second):
        if one is not None:
            logprobs.add(one, temperature)
    if second is not None:
        return Reference(model=second)
    lora = run.job.tuning.lora
    if build.tuning_adapter(run.job) == "continue" or (lora is not None and lora.init == "pissa"):
        copy_adapter(model)
        return Reference(adapter=COPY)
    return Reference()


def _second(model: Any, precision: Precision) -> Any:
    """A frozen copy; what isn't trained is shared with the model. In bf16 it keeps of linear layers what autocast would
    round their fp32 weights to in each forward pass: half the memory, and the same numbers to the last bit."""
    shared: dict[int, Any] = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    second = copy.deepcopy(model, shared)
    second.requires_grad_(False)
    if precision == "bf16":
        for weight in adapters.rounded_weights(second):
            weight.data = weight.data.to(torch.bfloat16)
    return second


def _load(run: Run, tokens: Any) -> Any:
    """The model that the job names: as small as its precision allows, and quantised as the policy is."""
    job, prepared = run.job, run.prepared
    folder = prepared.reference
    is_adapter = prepared.reference_base is not None
    assert folder is not None
    source = source_of(job, "reference") or folder.name
    before = [folder / BASE_ADAPTER] if is_adapter and (folder / BASE_ADAPTER).is_dir() else []
    # Quantised weights can't take adapters in.
    quantization = job.tuning.quantization if job.tuning.method == "qlora" and not before else None
    dtype = adapters.load_dtype("lora", base.precision(job.training))
    origin = prepared.reference_base or folder
    settings: dict[str, Any] = {
        "attention": job.model.attention,
        # A job says of its own model that its code may run.
        "allow_remote_code": base.remote_code(job) and origin == prepared.model,
        "field": f"{job.stage}.reference",
    }
    if is_adapter and quantization is None:
        model: Any = build.merged(origin, [*before, folder], source, "causal", dtype=dtype, **settings)
    else:
        model = base.load(origin, source, dtype, quantization=quantization, **settings)
    model.config.use_cache = False
    if is_adapter and quantization is not None:
        vocabulary.grow(model, build.rows(folder))
        model = build.attach(model, folder, source, field=settings["field"])
    vocabulary.grow(logprobs.bare(model), len(tokens))
    model.requires_grad_(False)
    return model


def copy_adapter(model: PeftModel) -> None:
    """Keep the adapter's weights as they are now, beside it and frozen."""
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    config = copy.deepcopy(model.peft_config[TRAINED])
    model.add_adapter(COPY, config)
    del model.peft_config[COPY]
    copies = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, weight in copies.items():
            if name in trained:
                weight.requires_grad_(trained[name])
            if (of_copy := _copy_of(name)) != name:
                copies[of_copy].data = weight.detach().clone()
                copies[of_copy].requires_grad_(False)


def _cast_copy(model: nn.Module) -> None:
    """The trainer has given the trained adapter its number type; the copy has to be rounded as that was."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        kept = weights.get(_copy_of(name))
        if kept is not None and kept is not weight:
            kept.data = kept.data.to(weight.dtype)


def _copy_of(name: str) -> str:
    return re.sub(rf"\.{TRAINED}(?=\.|$)", f".{COPY}", name)


@contextmanager
def _adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Compute with another adapter, or with none. peft's own switches change which weights want gradients, too, which
    FSDP and DDP have settled by then."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [name] if name else layer._active_adapter, name is None
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
