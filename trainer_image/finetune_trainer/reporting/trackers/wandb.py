"""A run at Weights & Biases, or at a server of one's own.

Called by `callback`, in the tracker's thread. The key is in WANDB_API_KEY. The client runs a process of its own beside
the rank, which sends in the background.
"""

import logging
import os
import tempfile
from collections.abc import Mapping

from finetune_api.output import WandbSpec

PATIENCE = 60.0
"""Seconds to open the run."""


class Client:
    """The run with the id, gone on with where it is there already. What it has of a step isn't written again."""

    def __init__(self, spec: WandbSpec, name: str, run_id: str, settings: Mapping[str, object]) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # by the library, to its makers
        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # what goes wrong is told by `line`, once
        import wandb

        self._folder = tempfile.TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True)
        # Nothing but the curves: no output, code, git remote, host, packages or readings of the machine.
        chosen = wandb.Settings(
            host="",
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            silent=True,
            init_timeout=PATIENCE,
        )
        if spec.base_url is not None:
            chosen.base_url = spec.base_url
        try:
            self._run = wandb.init(
                project=spec.project,
                entity=spec.entity,
                id=run_id,
                name=name,
                resume="allow",
                config=dict(settings),
                dir=self._folder.name,
                settings=chosen,
            )
        except BaseException:
            wandb.teardown()  # or the next try would find the run in use, by this one
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, done: bool) -> None:
        import wandb

        self._run.finish(exit_code=0 if done else 1)
        wandb.teardown()  # its process ends once all is sent and written
        self._folder.cleanup()
