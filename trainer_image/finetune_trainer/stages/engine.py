"""What we change in transformers' Trainer, in every stage: order, normalisation, randomness, number types, checkpoints.

The trainer of stages pt and sft is ``class X(Engine, <TRL trainer>)``, those of the others are ``class X(Engine)``: a
stage says how its loss is computed and what it is divided by, and what is measured. Every member of TRL or transformers
that is overridden here or there is listed in `upstream` and pinned by a test on its signature.
"""

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINING_ARGS_NAME
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
from finetune_trainer.run import Run
from finetune_trainer.stages.agree import share
from finetune_trainer.stages.noted import Noted

Batch = dict[str, torch.Tensor]
Values = dict[str, npt.NDArray[np.float64]]
"""What was measured on a split, by name: a value a row, or one a batch."""


@dataclass
class Step:
    """What is known of the optimizer step at hand. Filled by `Engine`, read and emptied by `steps`."""

    losses: list[torch.Tensor] = field(default_factory=list)
    """This rank's micro-batches; their mean over ranks and sum over micro-batches is the loss of the step."""
    grad_norm: torch.Tensor | float = 0.0
    tokens: int = 0
    """Of all ranks, without padding."""
    counts: list[float] = field(default_factory=list)
    """What `Engine.counts` says of all ranks' micro-batches together: what the losses of the step are divided by."""


class Keys(Dataset[Any]):
    """What Trainer takes for the data: what the sampler draws is handed to the collator, which reads what it stands
    for."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: Any) -> Any:
        return key


class OrderedSampler(Sampler[Any]):
    """The order of `data.order`. The epoch is taken from the steps done: accelerate hides samplers from set_epoch when
    it skips batches after a resume."""

    def __init__(self, trainer: "Engine") -> None:
        self._trainer, self._training = trainer, trainer.run.job.training
        self._lengths, self._global_batch = trainer.data.lengths, self._training.global_batch_size
        self._steps = order.steps_per_epoch(len(self._lengths), self._global_batch)

    def __iter__(self) -> Iterator[Any]:
        epoch, seed = self._trainer.state.global_step // self._steps, self._training.seed
        rows = order.epoch_order(len(self._lengths), self._global_batch, seed, epoch)
        if self._training.group_by_length:
            rows = order.grouped_by_length(rows, self._lengths, self._global_batch, seed, epoch)
        keys = self._trainer.keys(rows, self._global_batch)
        return iter([keys[place] for place in order.places_by_length(rows, self._lengths, self._global_batch)])

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
        data: Any,
        run: Run,
        precision: Precision,
        saver: Saver,
        counters: Counters,
        keeps: Stateful | None = None,
        **kwargs: Any,
    ) -> None:
        self.data, self.run, self.precision = data, run, precision
        self.saver, self.counters = saver, counters
        self.noted = Noted()
        own = {} if keeps is None else {"stage": keeps}
        self.kept: Mapping[str, Stateful] = {"counters": counters, "noted": self.noted, **own}
        """What goes on after a resume besides weights and optimizer; ``keeps`` is the stage's own."""
        self.step_facts = Step()
        keys = Keys(self.items_per_epoch(data, run))
        super().__init__(**{"train_dataset": keys, **kwargs})
        self.train_dataset = keys
        adapters.cast_trainable(self.model, precision)

    # What a stage says

    @classmethod
    def items_per_epoch(cls, data: Any, run: Run) -> int:  # noqa: ARG003
        """How many places of batches one pass over the data fills."""
        return len(data)

    def keys(self, rows: Sequence[int], global_batch: int) -> Sequence[Any]:  # noqa: ARG002
        """What stands for each of an epoch's rows, before those of a step are sorted by length."""
        return rows

    def counts(self, batch: Batch) -> list[float]:
        """What a micro-batch adds to what losses are divided by. The sum of the first over the global batch is handed
        to `compute_loss`; all sums are in ``step_facts.counts``."""
        return [float((batch["labels"][:, 1:] != IGNORED).sum())]

    def begin_step(self, batches: list[Batch]) -> None:
        """On all ranks, with this rank's micro-batches, before the first of them is trained."""

    @abstractmethod
    def measured(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """What `summary` needs of a batch, each in one dimension: a value a row, or one for all."""

    @abstractmethod
    def summary(self, values: Values) -> dict[str, float]:
        """Metrics of a split, ``loss`` among them, from what was measured on all of it."""

    def note(self, **values: tuple[torch.Tensor | float, torch.Tensor | float]) -> None:
        """Metrics of a micro-batch, each as (sum, count): logged as sum of sums by sum of counts over micro-batches,
        ranks and the steps since the last line of the log. ``__`` in a name stands for ``/``. Whatever is noted, is
        noted on every rank."""
        for name, (total, count) in values.items():
            self.noted.add(name.replace("__", "/"), total, count)

    @property
    def ranks(self) -> int:
        """Times which a loss is to be taken after it was divided by a count of the global batch: DDP and FSDP average
        gradients over ranks."""
        return int(self.accelerator.num_processes)

    # What we change

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # the library's own is of the steps since it was started
            logs |= self.noted.means(self.args.device)
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:  # noqa: ARG002
        return OrderedSampler(self)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The step's micro-batches, and what the whole global batch counts: see `counts`.

        None after the last step: the library would do one more where a run goes on from there within an epoch.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], torch.tensor(0, device=device)
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        tokens = sum(int(batch.pop("tokens")) for batch in batches)
        mine = np.sum([self.counts(batch) for batch in batches], axis=0)
        totals = np.sum(share([tokens, *mine], device), axis=0).tolist()
        self.step_facts = Step(tokens=int(totals[0]), counts=totals[1:])
        self.begin_step(batches)
        return batches, torch.tensor(totals[1], device=device)

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ARG002
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            lora = self.run.job.tuning.lora
            ratio = lora.lora_plus_ratio if lora else None
            groups = optimizer.groups(self.model, self.args.learning_rate, self.args.weight_decay, ratio)
            self.optimizer = kind(groups, **settings)
            if settings.get("optim_bits") == 8:
                optimizer.keep_exact(optimizer.embeddings(self.model))
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        made = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        if checkpoint is not None and getattr(made, "is_paged", False):
            assert self.lr_scheduler is not None
            folder = Path(checkpoint)
            # The library has several ranks load it onto their GPUs.
            saved = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
            optimizer.load_paged(made, saved)
            self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

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

    def take_weights(self, checkpoint: Path) -> None:
        """Those of a checkpoint, and nothing else of it: training is over."""
        super()._load_from_checkpoint(str(checkpoint), self.model)
        adapters.cast_trainable(self.model, self.precision)

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
        self.noted.settle(self.args.device)
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
