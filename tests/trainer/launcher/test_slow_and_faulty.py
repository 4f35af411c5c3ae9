"""Two nodes of one rank each: a slow rank is reported, and an error of the hardware names the node that it is on."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

from tests.trainer.support import tiny
from tests.trainer.support.attempt import in_step, recorded
from tests.trainer.support.forge import Forge
from tests.trainer.support.nodes import Nodes


def slow_second(rank: int) -> None:
    """Rank 1 takes 30 % longer. What is measured is replaced after it was measured, so that no load of the machine
    decides."""
    from finetune_trainer.training.own_time import OwnTime

    recorded(rank)
    take = OwnTime.take

    def taken(self: Any) -> float:
        assert take(self) > 0, "it is measured in every step"
        return 1.3 if rank else 1.0

    mock.patch.object(OwnTime, "take", taken).start()


def test_a_slow_rank_is_in_the_progress_that_rank_0_reports(forge: Forge, root: Path) -> None:
    job = tiny.job(training={"microBatchSize": 2, "maxSteps": 18})
    pods = Nodes(forge, root, job)
    assert pods.run(slow_second) == [0, 0]
    progress = json.loads((pods.home / "reports" / "status.json").read_text())["status"]["progress"]
    slowest = progress["slowestRank"]
    assert (slowest["rank"], slowest["nodeRank"], slowest["stragglers"]) == (1, 1, 1)
    assert slowest["sinceStep"] <= 5


def broken_gpu(rank: int) -> None:
    """The GPU of rank 1 fails in step 3."""
    recorded(rank)

    def fail() -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    if rank == 1:
        in_step(3, fail)


def test_an_error_of_the_hardware_restarts_nothing_and_names_its_node(forge: Forge, root: Path) -> None:
    pods = Nodes(forge, root, tiny.job(training={"maxSteps": 6}), restarts=3)
    assert pods.run(broken_gpu) == [70, 70]
    for node in (0, 1):
        result = pods.result(node)
        assert (result.reason, result.faulty_node, result.restart) == ("HardwareError", 1, None)
        assert "uncorrectable ECC error" in result.message
