"""One of two ranks, for `test_equivalence`: ``python -m tests.trainer.rank ROOT`` with torchrun's environment.

Rank 1 alone is told to stop, at the end of its fourth step.
"""

import os
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

from finetune_trainer.errors import TrainerError
from finetune_trainer.stages.sft import workflow
from finetune_trainer.stages.steps import Steps

from tests.trainer import tiny


def main(root: Path) -> int:
    rank = int(os.environ["RANK"])
    job = tiny.job(training={"microBatchSize": 4})
    run = tiny.make_run(root, job, rank=rank, world_size=int(os.environ["WORLD_SIZE"]), workspace="two")
    steps = count()
    stop = False

    def step_end(self: Steps, args: object, state: object, control: object, **kwargs: object) -> None:
        nonlocal stop
        stop = rank == 1 and next(steps) == 3
        original(self, args, state, control, **kwargs)

    original, Steps.on_step_end = Steps.on_step_end, step_end  # type: ignore[method-assign]
    try:
        workflow.run(replace(run, stop_requested=lambda: stop))
    except TrainerError as error:
        print(f"rank {rank}: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
