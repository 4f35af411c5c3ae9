"""The base class of every stage's trainer: what we change in transformers' Trainer.

That is the order of rows, the normalization of the loss, randomness, number types and the files of a checkpoint. A
stage is a subclass. It defines `micro_batch_loss`, `evaluation_step` and `evaluation_metrics`, and may override the
other members of the section "What a stage defines". Every member of transformers that is overridden here or in a stage
is listed in `upstream`, and a test compares its signature.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from finetune_trainer.checkpoints import stage_state
from finetune_trainer.checkpoints.saver import Saver, StepState
from finetune_trainer.checkpoints.stage_state import Stateful
from finetune_trainer.collectives import all_gather
from finetune_trainer.data import micro_batches, order
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.datasets import Dataset, Index
from finetune_trainer.data.row import IGNORED
from finetune_trainer.model import freeze, noise, optimizer, rounded_adamw, trainable
from finetune_trainer.model.base import Precision
from finetune_trainer.model.rounded_adamw import RoundedAdamW
from finetune_trainer.reporting.progress import ProgressReport
from finetune_trainer.run import Run
from finetune_trainer.runtime.heartbeat import beat
from finetune_trainer.training.metric_sums import MetricSums, Number
from finetune_trainer.training.own_time import OwnTime, measure_inside
from finetune_trainer.training.step import IndexDataset, StepStats

Model = PreTrainedModel | PeftModel
EvaluationValues = dict[str, npt.NDArray[np.float64]]
"""Name -> values of one split: one value per row, or one per batch."""
STEP = "micro_batches"
"""Key of a batch of transformers, whose value is the micro-batches of this rank in a step."""


class StopRequested(Exception):
    """Raised between two optimizer steps, on all ranks, once they agree that a rank received SIGTERM."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Randomness is derived, not saved: dropout of a step is the same in every attempt."""
    source = random.Random(f"step:{seed}:{step}:{rank}")
    torch.manual_seed(source.getrandbits(63))
    np.random.seed(source.getrandbits(32))
    random.seed(source.getrandbits(64))


class BaseTrainer(Trainer):
    """See the module. ``stage_state``: state of the stage that belongs in checkpoints."""

    model: Model
    # The loss is divided by a count over the whole global batch, so Trainer must not divide it by the accumulation.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        data: Dataset,
        run: Run,
        precision: Precision,
        saver: Saver,
        progress: ProgressReport,
        stage_state: Stateful | None = None,
        **kwargs: Any,
    ) -> None:
        self.data, self.run, self.precision = data, run, precision
        self.saver, self.progress = saver, progress
        self.metric_sums = MetricSums()
        self.checkpoint_state: Mapping[str, Stateful] = {
            "counters": progress.counters,
            "noted": self.metric_sums,
            **({} if stage_state is None else {"stage": stage_state}),
        }
        """Name in the files of a checkpoint -> state besides weights and optimizer."""
        self.step_stats = StepStats()
        spec = run.job.training
        self.order = order.EpochOrder(
            len(data), spec.global_batch_size, spec.seed, data.lengths if spec.group_by_length else None
        )
        super().__init__(train_dataset=IndexDataset(self.samples_per_epoch(data, run)), **kwargs)
        self.own_time = OwnTime(self.args.device)
        """Without data and forward passes of sharded weights: there ranks wait for each other in every layer."""
        self._waits_in_forward = run.job.training.parallelism == "fsdp"
        self._is_last_forward = False
        if self._waits_in_forward:
            _, layers = freeze.find_layers(self.model)
            measure_inside(layers[len(layers) // 2], self.own_time)
        trainable.cast_trainable(self.model, precision)
        if (strength := run.job.training.neftune_noise_alpha) is not None:
            noise.add(self.model, strength)

    # What a stage defines

    @abstractmethod
    def micro_batch_loss(self, model: nn.Module, batch: Batch, denominator: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch: a sum over it, divided by ``denominator``, the first of the `loss_denominators` of
        the global batch. The loss of a step is the sum over all micro-batches of all ranks."""

    @classmethod
    def samples_per_epoch(cls, data: Dataset, run: Run) -> int:  # noqa: ARG003
        """Number of samples in one pass over the data, before the last step is filled up."""
        return len(data)

    def indices(self, rows: Sequence[int]) -> Sequence[Index]:
        """The index that the collator gets for each row of a step, or of an evaluation."""
        return rows

    def step_batches(self, step: int) -> list[Batch]:
        """The micro-batches of this rank in a step."""
        rows = self.order.rows(step)
        indices = self.indices(rows.tolist())
        places = order.longest_first(rows, self.data.lengths).tolist()
        tokens = self.data.tokens[rows[places]].tolist()
        mine = micro_batches.deal(tokens, self.run.micro_batch, self.run.world_size)[self.run.rank]
        return [self.data_collator([indices[places[place]] for place in batch]) for batch in mine]

    def loss_denominators(self, batch: Batch) -> list[float]:
        """What a micro-batch adds to the denominators of the loss. `micro_batch_loss` gets the first, summed over the
        global batch; all sums are in ``step_stats.denominators``."""
        return [float((batch["labels"][:, 1:] != IGNORED).sum())]

    def before_training(self) -> None:
        """Runs on all ranks, before the first step, with the model in its place."""

    def before_step(self, batches: list[Batch]) -> None:
        """Runs on all ranks, with this rank's micro-batches, before the first of them is trained."""

    @abstractmethod
    def evaluation_step(self, model: nn.Module, batch: Batch) -> Batch:
        """The values that `evaluation_metrics` needs, each in one dimension: one value per row, or one per batch."""

    @abstractmethod
    def evaluation_metrics(self, values: EvaluationValues) -> dict[str, float]:
        """Metrics of a split, ``loss`` among them, from the values of all its batches."""

    def after_evaluation(self) -> None:
        """Runs on all ranks, after an evaluation of the weights of the last step."""

    # What a stage uses

    def add_metrics(self, **values: tuple[Number, Number]) -> None:
        """Training metrics of a micro-batch, each as (sum, count). The log gets sum of sums / sum of counts, over the
        micro-batches of all ranks since its last line. ``__`` in a name stands for ``/``. Every rank adds the same
        names."""
        for name, (total, count) in values.items():
            self.metric_sums.add(name.replace("__", "/"), total, count)

    def any_rank_stops(self) -> bool:
        """Whether a rank received SIGTERM. Called by all ranks."""
        return any(stop for (stop,) in all_gather([self.run.stop_requested()], self.args.device))

    # What the training loop uses

    def save_checkpoint(self) -> None:
        """Save now, between two steps. Called by all ranks."""
        self._save_checkpoint(self.model_wrapped, None)

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint and nothing else of it: training is over."""
        super()._load_from_checkpoint(str(checkpoint), self.model)
        trainable.cast_trainable(self.model, self.precision)

    # What we change in transformers' Trainer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # transformers' value is of the steps since this process started
            logs |= self.metric_sums.means(self.args.device)
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # of a skipped step, see `divergence.SkippedSteps`
            del logs["grad_norm"]
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:  # noqa: ARG002
        """Only its length is used, to count epochs: see `step_batches`."""
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(
        self,
        epoch_iterator: Iterator[Any],  # noqa: ARG002
        num_batches: int,  # noqa: ARG002
        device: torch.device,
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """A step as one batch of transformers, and the first of the global batch's `loss_denominators`. transformers
        has as many batches in each step, and we have as many micro-batches as a step's tokens need.

        None after the last step: transformers would train one step more where a resumed run starts within an epoch.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], torch.tensor(0, device=device)
        self.own_time.start()
        if not self._waits_in_forward:
            self.own_time.begin()
        batches = self.step_batches(self.state.global_step)
        self.own_time.end()
        tokens = sum(batch["input_ids"].shape[1] for batch in batches)
        mine = np.sum([self.loss_denominators(batch) for batch in batches], axis=0)
        by_rank = all_gather([tokens, *mine], device)
        totals = np.sum(by_rank, axis=0).tolist()
        count = len(batches) * self.run.world_size
        self.step_stats = StepStats(
            tokens=int(totals[0]),
            tokens_by_rank=[rank[0] for rank in by_rank],
            denominators=totals[1:],
            micro_batches=count,
        )
        self.before_step(batches)
        return [{STEP: batches}], torch.tensor(totals[1], device=device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward passes of all micro-batches. Ranks exchange gradients after the last; with sharded
        weights after each, because whole gradients have no room."""
        batches, exchange_each = inputs[STEP], self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch")
        losses = self.step_stats.losses
        if not self._waits_in_forward:
            self.own_time.begin()
        for batch in batches:
            exchanges = exchange_each or batch is batches[-1]
            self._is_last_forward = batch is batches[-1]
            with nullcontext() if exchanges else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, batch, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return sum(int(super(BaseTrainer, self).floating_point_ops(batch)) for batch in inputs[STEP])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """DDP and FSDP average gradients over ranks, but the loss of a step is a sum over them."""
        assert isinstance(num_items_in_batch, torch.Tensor)
        loss = self.micro_batch_loss(model, inputs, num_items_in_batch)
        if self._is_last_forward and not self._waits_in_forward:
            self.own_time.end()  # in the backward pass ranks wait for each other's gradients
        return loss * int(self.accelerator.num_processes)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:  # noqa: ARG002
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, cast(PreTrainedModel, self.model))
            lora = self.run.job.tuning.lora
            ratio = lora.lora_plus_ratio if lora else None
            groups = optimizer.parameter_groups(self.model, self.args.learning_rate, self.args.weight_decay, ratio)
            if self.precision == "pureBf16" and self.args.optim in rounded_adamw.NAMES:
                adam = {name: settings[name] for name in ("lr", "betas", "eps")}
                self.optimizer = RoundedAdamW(groups, **adam, seed=self.args.seed)
            else:
                self.optimizer = kind(groups, **settings)
            if settings.get("optim_bits") == 8:
                optimizer.use_32_bit_states(optimizer.embedding_weights(self.model))
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.run.keeps:
            return  # no step follows, and it may be larger than the weights
        unwrapped = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        if checkpoint is not None and getattr(unwrapped, "is_paged", False):
            assert self.lr_scheduler is not None
            folder = Path(checkpoint)
            # With several ranks, transformers loads it onto their GPUs.
            saved = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
            optimizer.load_paged_state(unwrapped, saved)
            self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> torch.Tensor | float:
        norm: torch.Tensor | float = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self.step_stats.grad_norm = norm
        return norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        trainable.cast_trainable(self.model, self.precision)
        stage_state.load(Path(resume_from_checkpoint), self.checkpoint_state)

    def _evaluate(
        self,
        trial: Any,  # noqa: ARG002
        ignore_keys_for_eval: list[str] | None,  # noqa: ARG002
        skip_scheduler: bool = False,  # noqa: ARG002
    ) -> dict[str, float]:
        """Hand over to `loop`. Runs after the log line of a step and before its checkpoint, which has the metrics."""
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        return {}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """transformers writes its files into a staging directory; `Saver` does the rest."""

        def write(folder: Path) -> None:
            output_dir, self.args.output_dir = self.args.output_dir, str(folder)
            try:
                super(BaseTrainer, self)._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = output_dir
            if self.args.should_save:
                files = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                (files / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nothing reads
                stage_state.save(files, self.checkpoint_state)

        step = self.state.global_step
        beat("save", step)
        self.metric_sums.reduce(self.args.device)
        history = reversed(self.state.log_history)
        evaluation = next((entry for entry in history if entry["step"] == step and "eval_loss" in entry), {})
        self.saver.save(
            StepState(
                step=step,
                samples=self.progress.counters.samples,
                dtypes=sorted({str(weight.dtype) for weight in self.model.parameters() if weight.requires_grad}),
                metrics={name: value for name, value in evaluation.items() if name.startswith("eval_")},
            ),
            write,
        )

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing to save: see `seed_step`."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: see `seed_step`."""
