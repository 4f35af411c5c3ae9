"""A run at Weights & Biases, or on a self-hosted server.

`sender` calls it in the thread of the tracker. The API key is in WANDB_API_KEY. The client starts a process of its own,
which sends in the background.
"""

import logging
import os
import tempfile
from collections.abc import Mapping

from finetune_api.output import WandbSpec

PATIENCE = 60.0
"""Seconds to open the run."""


class Client:
    """The run with this id, resumed when it exists. Values that it has for a step are not overwritten."""

    def __init__(self, spec: WandbSpec, name: str, run_id: str, settings: Mapping[str, object]) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # reports of the library to its authors
        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # `sender` logs a failure, once
        import wandb

        self._folder = tempfile.TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True)
        # Send only the curves: no output, code, git remote, host, packages or machine statistics.
        client_settings = wandb.Settings(
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
            client_settings.base_url = spec.base_url
        try:
            self._run = wandb.init(
                project=spec.project,
                entity=spec.entity,
                id=run_id,
                name=name,
                resume="allow",
                config=dict(settings),
                dir=self._folder.name,
                settings=client_settings,
            )
        except BaseException:
            wandb.teardown()  # else the next attempt would find the run in use by this process
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, done: bool) -> None:
        import wandb

        self._run.finish(exit_code=0 if done else 1)
        wandb.teardown()  # its process ends when everything is sent and written
        self._folder.cleanup()
