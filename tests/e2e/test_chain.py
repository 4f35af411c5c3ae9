"""Three jobs from one `kubectl apply -f examples/chain/`: each waits for what it names, and all end well."""

from __future__ import annotations

import pytest

from examples.demo import volume
from tests.e2e.conftest import POD_MINUTES, Scene
from tests.kube import until

CHAIN = volume.CHECKOUT / "examples" / "chain"
pytestmark = pytest.mark.timeout(1800)  # three jobs of two pods each, one after the other


def test_the_chain_runs_from_one_apply(scene: Scene) -> None:
    """As it stands; only that the tiny model has the real one's name."""
    scene.kubectl("apply", f"--filename={CHAIN}")
    waiting = until(
        "the last job waits",
        lambda: next((s for s in [scene.status("chain-ppo")] if s.get("reason") == "WaitingForJob"), None),
        POD_MINUTES,
        every=0.2,
    )
    assert "job chain-sft (model.fromJob)" in waiting["message"]
    assert "job chain-rm (ppo.rewardModel.fromJob)" in waiting["message"]
    assert not scene.pods("chain-ppo", "prepare"), "nothing is held for a job that can't begin"

    ended = {
        name: scene.reaches(name, "Succeeded", "Failed", timeout=2 * POD_MINUTES)
        for name in ("chain-sft", "chain-rm", "chain-ppo")
    }
    assert {name: status["phase"] for name, status in ended.items()} == dict.fromkeys(ended, "Succeeded"), ended
    pinned = {one["use"]: (one["job"], one["artifact"]) for one in ended["chain-ppo"]["references"]}
    assert pinned == {
        "model": ("chain-sft", ended["chain-sft"]["artifact"]),
        "rewardModel": ("chain-rm", ended["chain-rm"]["artifact"]),
    }
    assert ended["chain-ppo"]["artifact"]["kind"] == "adapter"
