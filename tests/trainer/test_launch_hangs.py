"""A run that stands still, through the real launcher: ended with 76, who stood where, and the stacks."""

import threading
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_trainer.stillness import Bounds

from tests.trainer import tiny
from tests.trainer.forge import Forge
from tests.trainer.nodes import Nodes
from tests.trainer.pod import Pod


def test_ranks_that_load_for_ever(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [["deaf"], ["deaf"]], bounds={"load": 8})
    assert pod.run() == 76
    assert pod.said.reason == "Hung"
    assert "rank 0 in phase load after step 0" in pod.said.message
    assert "(bound 8 s)" in pod.said.message
    log = pod.log.read_text()
    assert "The stacks of rank 0:" in log
    assert "The stacks of rank 1:" in log
    assert log.count("in deaf") == 2


def stuck(rank: int) -> None:
    """Rank 1 doesn't come back from its third step; rank 0 waits for it in a collective."""
    from finetune_trainer.stages.engine import Engine

    step = Engine.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if rank == 1 and self.state.global_step == 2:
            never_returns()
        return step(self, *args, **kwargs)

    mock.patch.object(Engine, "training_step", training_step).start()


def never_returns() -> None:
    threading.Event().wait()


def test_a_rank_that_hangs_in_training(forge: Forge, root: Path) -> None:
    pod = Nodes(forge, root, tiny.job(), nodes=1, ranks=2, bounds=Bounds(first=8, least=8))
    assert pod.run(stuck) == [76]
    message, log = pod.said(0).message, (pod.etc(0) / "log").read_text()
    assert "rank 0 in phase train after step 2" in message
    assert "rank 1 in phase train after step 2" in message
    assert "in never_returns" in log
    # Where rank 0 waits is shown, too, though it sits in a collective and hears no Python.
    assert "in scored" in log
