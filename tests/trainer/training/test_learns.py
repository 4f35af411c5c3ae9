"""Each stage teaches its task to a model with random weights. The artifact alone is measured, on rows that it has not
seen.

One seed each; ``--sweep`` takes three.
"""

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.run import Run

from tests.trainer.support import learning, stages, tiny

pytestmark = pytest.mark.usefixtures("drawn")
HELD_OUT = 9999
"""Seed of rows that are not trained on."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", (1, 2, 3) if metafunc.config.getoption("--sweep") else (1,))


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    learning.save_model(tmp_path / "models" / "model", seed)
    return tmp_path


def learn(root: Path, stage: str, rows: list[dict[str, Any]], seed: int, training: dict[str, Any], **more: Any) -> Run:
    """The stage's run over these rows, every weight trained."""
    stages.save(root / "data" / f"{stage}.jsonl", rows)
    job = stages.job(
        stage,
        training={
            "globalBatchSize": 32,
            "microBatchSize": 32,
            "cutoffLength": 32,
            "learningRate": 0.003,
            "seed": seed,
            **training,
        },
        **more,
    )
    run = tiny.make_run(root, job)
    stages.train(run)
    assert (run.folders.reports / "training_loss.png").is_file()
    return run


def test_pt_halves_the_perplexity(root: Path, seed: int) -> None:
    unseen = learning.documents(HELD_OUT, 64)
    before = learning.perplexity(learning.load(root / "models" / "model"), unseen)
    run = learn(root, "pt", learning.documents(seed, 600), seed, {"maxSteps": 60})
    assert learning.perplexity(learning.load(run.folders.artifact), unseen) < before / 2


def test_sft_learns_to_reverse(root: Path, seed: int) -> None:
    trained = learning.words(seed, 4000)
    unseen = [word for word in learning.words(HELD_OUT, 200) if word not in set(trained)]
    assert learning.exact(learning.load(root / "models" / "model"), unseen) < 0.1
    training = {"maxSteps": 300, "globalBatchSize": 64, "microBatchSize": 64, "learningRate": 0.004}
    run = learn(root, "sft", learning.reversals(trained), seed, training)
    assert learning.exact(learning.load(run.folders.artifact), unseen) > 0.8


def test_rm_learns_which_answer_is_better(root: Path, seed: int) -> None:
    run = learn(root, "rm", learning.pairs(seed, 1000), seed, {"maxSteps": 60})
    unseen = learning.pairs(HELD_OUT, 200)
    assert learning.accuracy(learning.load(run.folders.artifact, scores=True), unseen) > 0.9


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_dpo_and_kto_learn_what_is_preferred(root: Path, seed: int, stage: str) -> None:
    rows = learning.pairs(seed, 1000) if stage == "dpo" else learning.labelled(seed, 2000)
    run = learn(root, stage, rows, seed, {"maxSteps": 60})
    base, trained = learning.load(root / "models" / "model"), learning.load(run.folders.artifact)
    assert learning.preferences(trained, base, learning.pairs(HELD_OUT, 200)) > 0.85


def test_ppo_earns_most_of_the_reward_close_to_its_reference(root: Path, seed: int) -> None:
    target = 8.0
    rows = [{"messages": [learning.said("user", word)]} for word in learning.words(seed, 2000)]
    with learning.reward_service() as url:
        run = learn(
            root,
            "ppo",
            rows,
            seed,
            {"maxSteps": 240, "scheduler": "constant"},
            ppo={
                "rewardModel": {"http": {"url": url}},
                "rolloutBatchSize": 64,
                "rolloutMicroBatchSize": 64,
                "epochs": 4,
                "maxNewTokens": learning.ANSWER,
                "klTarget": target,
                "klCoefficient": 0.01,
                "rewardNormalization": "none",
                "missingEosPenalty": 0.0,
            },
        )
    rewards, divergences = (tiny.logged(run, name) for name in ("reward", "kl"))
    assert rewards[0] < 0.4
    assert sum(rewards[-5:]) / 5 > 0.8, "the best reward is 1"
    assert max(divergences[-5:]) < 2 * target
