"""What an entry of the data cache is built from, and how."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_api.contract import ResolvedJob
from finetune_api.data import UNITS, DatasetSpec

from finetune_trainer.data.files import DataFile, data_files
from finetune_trainer.prepare.worker_pool import Tokenization

BuildActivity = Literal["Validating", "Tokenizing"]


@dataclass(frozen=True)
class DatasetSource:
    """A data set and the path to which it was fetched."""

    spec: DatasetSpec
    path: Path

    @property
    def files(self) -> list[DataFile]:
        """The files of the data set, in the order in which they are read."""
        return data_files(self.path, self.spec)

    @property
    def size(self) -> int:
        """Size of the files in bytes."""
        return sum(file.path.stat().st_size for file in self.files)


@dataclass(frozen=True)
class ReadProgress:
    """How much of the data is read, for the status."""

    activity: BuildActivity
    rows: int
    """Rows checked or tokenized."""
    size: int
    """Bytes of the files that are read, as far as known: those of an archive or a table count when it ends."""
    total: int
    """Bytes of all files."""


@dataclass(frozen=True)
class BuildPlan:
    """See the module."""

    job: ResolvedJob
    train: list[DatasetSource]
    evaluate: list[DatasetSource]
    tokenization: Tokenization
    processes: int
    reports: Path
    """Folder of the job's reports."""
    invalid_rows: str
    """Where in the workspace all invalid rows are listed, for messages."""
    report_progress: Callable[[ReadProgress], None]
    check_stop: Callable[[], None]

    @property
    def evaluation_splits(self) -> list[str]:
        """eval, or eval-1, eval-2, ... if there are several data sets for evaluation."""
        if self.job.evaluation is None:
            return []
        if len(self.evaluate) < 2:
            return ["eval"]
        return [f"eval-{number}" for number in range(1, len(self.evaluate) + 1)]

    @property
    def unit(self) -> str:
        """What the stage trains: rows, pairs, answers or prompts."""
        return UNITS[self.job.stage]

    @property
    def limit(self) -> str:
        """Why units are dropped after tokenization, in words."""
        cutoff, ppo = self.job.training.cutoff_length, self.job.ppo
        if ppo:
            rest = f"{cutoff} - {ppo.max_new_tokens} = {cutoff - ppo.max_new_tokens}"
            return f"they are longer than what training.cutoffLength leaves beside ppo.maxNewTokens ({rest} tokens)"
        if self.job.stage == "pt":
            return "they have a single token"
        begins = "an answer begins" if self.unit == "pairs" else "the answer begins"
        return f"{begins} after training.cutoffLength ({cutoff} tokens)"

    @property
    def draws(self) -> bool:
        """Whether training rows are drawn from the data sets. Otherwise they are all rows, data set by data set."""
        fraction = self.job.evaluation.split_fraction if self.job.evaluation else None
        return bool(fraction or self.job.mixing != "concatenate")
