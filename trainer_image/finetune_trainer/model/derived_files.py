"""Files computed from a model and cached in the workspace: merged bases and the initial states of PiSSA adapters.

Their names contain the digests of what they were computed from, so jobs with the same base share them. Rank 0 writes
them while the other ranks wait.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from finetune_api.contract import ResolvedJob
from torch import distributed

from finetune_trainer import collectives
from finetune_trainer.collectives import COLLECTIVE_TIMEOUT
from finetune_trainer.model import model_files, pissa
from finetune_trainer.runtime import heartbeat

NO_DIGESTS: Mapping[str, str] = MappingProxyType({})


def input_digest(job: ResolvedJob, base_folder: Path, adapter: Path | None, digests: Mapping[str, str]) -> str:
    """Identifies the base and the adapter merged into it. ``digests`` has those of the prepared sources; a source
    without a digest is read."""
    parts = [digests.get(job.model.source) or model_files.digest(base_folder)]
    if adapter is not None:
        assert job.tuning.adapter is not None
        parts.append(digests.get(job.tuning.adapter.source) or model_files.digest(adapter))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def pissa_file(
    job: ResolvedJob, base_folder: Path, adapter: Path | None, scratch: Path, digests: Mapping[str, str] = NO_DIGESTS
) -> Path:
    """The file with the initial state of this job's PiSSA adapter."""
    assert job.tuning.lora is not None
    inputs = input_digest(job, base_folder, adapter, digests)
    return pissa.initial_file(scratch, inputs, job.tuning.lora, job.training.seed)


def make_on_rank_0(make: Callable[[], None]) -> None:
    """Call ``make`` on rank 0 while the other ranks wait. It may take long, so they wait in a process group of their
    own, which keeps no GPU busy."""
    group = collectives.new_group(COLLECTIVE_TIMEOUT)
    if group is None or distributed.get_rank() == 0:
        make()
    if group is not None:
        distributed.barrier(group)
        distributed.destroy_process_group(group)
    heartbeat.refresh()  # it may have taken most of the time that loading is allowed
