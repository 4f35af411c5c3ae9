"""What we change in TRL's trainers, in every stage: order, normalisation, randomness, number types, checkpoints.

A stage's trainer is ``class X(Engine, <TRL trainer>)``. Every member of TRL or transformers that is overridden here or
there is listed in `upstream` and pinned by a test on its signature.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from finetune_trainer.checkpoints import kept
from finetune_trainer.checkpoints.kept import Stateful
from finetune_trainer.checkpoints.saver import Facts, Saver
from finetune_trainer.data import order
from finetune_trainer.data.row import IGNORED
from finetune_trainer.heartbeat import beat
from finetune_trainer.model import adapters, optimizer
from finetune_trainer.model.base import Precision
from finetune_trainer.reporting.counters import Counters
from finetune_trainer.stages.agree import share


@dataclass
class Step:
    """What is known of the optimizer step at hand. Filled by `Engine`, read and emptied by `steps`."""

    losses: list[torch.Tensor] = field(default_factory=list)
    """This rank's micro-batches; their mean over ranks and sum over micro-batches is the loss of the step."""
    grad_norm: torch.Tensor | float = 0.0
    tokens: int = 0
    """Of all ranks, without padding."""


class OrderedSampler(Sampler[int]):
    """The order of `data.order`. The epoch is taken from the steps done: accelerate hides samplers from set_epoch when
    it skips batches after a resume."""

    def __init__(self, trainer: Trainer, lengths: Sequence[int], global_batch: int, seed: int, grouped: bool) -> None:
        self._trainer, self._lengths, self._global_batch, self._seed = trainer, lengths, global_batch, seed
        self._grouped = grouped
        self._steps = order.steps_per_epoch(len(lengths), global_batch)

    def __iter__(self) -> Iterator[int]:
        epoch = self._trainer.state.global_step // self._steps
        rows = order.epoch_order(len(self._lengths), self._global_batch, self._seed, epoch)
        if self._grouped:
            rows = order.grouped_by_length(rows, self._lengths, self._global_batch, self._seed, epoch)
        return iter(order.sorted_by_length(rows, self._lengths, self._global_batch))

    def __len__(self) -> int:
        return self._steps * self._global_batch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Randomness is derived, not saved: dropout of a step is the same in every attempt."""
    source = random.Random(f"step:{seed}:{step}:{rank}")
    torch.manual_seed(source.getrandbits(63))
    np.random.seed(source.getrandbits(32))
    random.seed(source.getrandbits(64))


class Engine(Trainer):
    """Mixed into each stage's TRL trainer, before it."""

    model: Any
    # The loss is divided by a count over the whole global batch, so Trainer must not divide it by the accumulation.
    loss_is_scaled_for_ga: Any = True

    def __init__(
        self,
        *,
        lengths: Sequence[int],
        global_batch: int,
        precision: Precision,
        saver: Saver,
        counters: Counters,
        keeps: Stateful | None = None,
        group_by_length: bool = False,
        lora_plus_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.item_lengths = lengths
        self.lora_plus_ratio = lora_plus_ratio
        self.global_batch = global_batch
        self.group_by_length = group_by_length
        self.precision = precision
        self.saver, self.counters = saver, counters
        self.kept: Mapping[str, Stateful] = {"counters": counters, **({} if keeps is None else {"stage": keeps})}
        """What goes on after a resume besides weights and optimizer; ``keeps`` is the stage's own."""
        self.step_facts = Step()
        super().__init__(**kwargs)
        adapters.cast_trainable(self.model, precision)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:  # noqa: ARG002
        return OrderedSampler(self, self.item_lengths, self.global_batch, self.args.seed, self.group_by_length)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The step's micro-batches, and the trained tokens of the whole global batch: what every loss is divided by.

        None after the last step: the library would do one more where a run goes on from there within an epoch.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], torch.tensor(0, device=device)
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        trained = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
        tokens = sum(int(batch.pop("tokens")) for batch in batches)
        counts = share([trained, tokens], device)
        self.step_facts = Step(tokens=int(sum(rank[1] for rank in counts)))
        return batches, torch.tensor(sum(rank[0] for rank in counts), device=device)

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ARG002
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = optimizer.groups(self.model, self.args.learning_rate, self.args.weight_decay, self.lora_plus_ratio)
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.step_facts.losses.append(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self.step_facts.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        return self.step_facts.grad_norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        adapters.cast_trainable(self.model, self.precision)
        kept.read(Path(resume_from_checkpoint), self.kept)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:  # noqa: ARG002
        """Ours, by `steps`: after the step was logged and before it is saved, so a checkpoint knows its evaluation."""
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The library writes the files into a staging folder; the rest is `Saver`'s."""

        def write(folder: Path) -> None:
            place, self.args.output_dir = self.args.output_dir, str(folder)
            try:
                super(Engine, self)._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = place
            if self.args.should_save:
                files = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                (files / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody reads
                kept.write(files, self.kept)

        step = self.state.global_step
        beat("save", step)
        measured = next((e for e in reversed(self.state.log_history) if e["step"] == step and "eval_loss" in e), {})
        self.saver.save(
            Facts(
                step=step,
                samples=self.counters.samples,
                dtypes=sorted({str(weight.dtype) for weight in self.model.parameters() if weight.requires_grad}),
                metrics={name: value for name, value in measured.items() if name.startswith("eval_")},
            ),
            write,
        )

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing to save: see `seed_step`."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: see `seed_step`."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Ours is written once, into the artifact."""

    def _send_telemetry(self) -> None:
        """Nothing leaves the cluster."""
