"""A run that hangs, with the real launcher: exit code 76, the state of each rank, and the stacks."""

import threading
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_trainer.launcher.hang_detection import HangLimits

from tests.trainer.support import tiny
from tests.trainer.support.forge import Forge
from tests.trainer.support.nodes import Nodes
from tests.trainer.support.pod import Pod


def test_ranks_that_hang_while_they_load(tmp_path: Path) -> None:
    # The ranks have this long to start on a busy machine. Then each says that its last heartbeat is older.
    pod = Pod(tmp_path, [["hang", 601], ["hang", 601]], hang_limits={"load": 600})
    assert pod.run() == 76
    assert pod.result.reason == "Hung"
    assert "ranks 0 and 1 in phase load after step 0" in pod.result.message
    assert "(limit 600 s)" in pod.result.message
    log = pod.log.read_text()
    assert "The stacks of rank 0:" in log
    assert "The stacks of rank 1:" in log
    assert log.count("in hang") == 2


def stuck(rank: int) -> None:
    """Rank 1 never returns from its third step; rank 0 waits for it in a collective."""
    from finetune_trainer.training.trainer import BaseTrainer

    step = BaseTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if rank == 1 and self.state.global_step == 2:
            never_returns()
        return step(self, *args, **kwargs)

    mock.patch.object(BaseTrainer, "training_step", training_step).start()


def never_returns() -> None:
    threading.Event().wait()


def test_a_rank_that_hangs_in_training(forge: Forge, root: Path) -> None:
    pod = Nodes(forge, root, tiny.job(), nodes=1, ranks=2, hang_limits=HangLimits(first=8, least=8))
    assert pod.run(stuck) == [76]
    message, log = pod.result(0).message, (pod.etc(0) / "log").read_text()
    assert "ranks 0 and 1 in phase train after step 2" in message
    assert "in never_returns" in log
    # The log also shows where rank 0 waits, although it is blocked in a collective and runs no Python.
    assert "in backward" in log
