"""Rewards of PPO, against values computed by hand."""

import math

import numpy as np
import pytest
from finetune_api.stages import PpoSpec
from finetune_trainer.stages.ppo.losses import Mask
from finetune_trainer.stages.ppo.rewards import (
    RewardNormalizer,
    RunningStatistics,
    kl_controller,
    kl_per_token,
    token_rewards,
)


def spec(**settings: object) -> PpoSpec:
    return PpoSpec.model_validate({"rewardModel": {"source": "pvc://models/reward"}, **settings})


def mask(*lengths: int) -> Mask:
    return np.arange(max(lengths)) < np.array(lengths)[:, None]


def test_each_token_pays_for_its_divergence_and_the_last_gets_the_score() -> None:
    policy, reference = (
        np.array([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0]]),
        np.array([[-2.0, -2.5, 5.0], [-1.0, 0.0, -3]]),
    )
    kl = kl_per_token(policy, reference, mask(2, 3))
    np.testing.assert_allclose(kl, [[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
    rewards = token_rewards(np.array([10.0, 20.0]), kl, mask(2, 3), 0.2)
    np.testing.assert_allclose(rewards, [[-0.2, 9.9, 0.0], [0.0, 0.2, 19.6]])


@pytest.mark.parametrize(
    ("measured", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 0.01),  # a tenth too far
        (600.0, 1 + 0.2 * 0.01),  # as far as counts
        (-3.0, 1 - 0.2 * 0.01),
    ],
)
def test_the_coefficient_follows_its_target(measured: float, factor: float) -> None:
    controller = kl_controller(spec(klCoefficient=0.5, klTarget=6, klHorizon=10_000))
    controller.update(measured, answers=100)
    assert controller.coefficient == pytest.approx(0.5 * factor)


def test_a_fixed_coefficient_is_constant() -> None:
    controller = kl_controller(spec(klControl="fixed", klCoefficient=0.5))
    controller.update(600.0, answers=10_000)
    assert controller.coefficient == 0.5


def test_a_controller_resumes_from_its_state() -> None:
    before, after = kl_controller(spec()), kl_controller(spec())
    before.update(60.0, answers=5000)
    after.load_state_dict(before.state_dict())
    assert after.coefficient == before.coefficient != kl_controller(spec()).coefficient


def test_running_statistics_are_those_of_all_scores() -> None:
    scores = np.array([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0])
    running = RunningStatistics()
    running.add(scores[:3])
    running.add(scores[3:4])
    running.add(scores[4:])
    assert running.mean == pytest.approx(scores.mean())
    assert running.std == pytest.approx(scores.std())


def test_normalization_by_the_statistics_of_stage_rm() -> None:
    """(score - 2) / 4, clipped at 3. An answer without an end gets 1.5 less, after the clip."""
    normalizer = RewardNormalizer(spec(rewardClip=3, missingEosPenalty=1.5), mean=2.0, std=4.0)
    ended = np.array([True, True, False, False])
    np.testing.assert_allclose(
        normalizer.rollout_rewards(np.array([4.0, 100.0, 4.0, -100.0]), ended), [0.5, 3.0, -1.0, -4.5]
    )


@pytest.mark.parametrize("kind", ["model", "running"])
def test_normalization_by_running_statistics(kind: str) -> None:
    """A reward model without statistics: the scores of all rollouts count, those of the current one too."""
    normalizer = RewardNormalizer(spec(rewardNormalization=kind, rewardClip=100), mean=None, std=None)
    ended = np.array([True, True])
    np.testing.assert_allclose(normalizer.rollout_rewards(np.array([0.0, 2.0]), ended), [-1.0, 1.0])
    everything = np.array([0.0, 2.0, 4.0, 6.0])
    np.testing.assert_allclose(
        normalizer.rollout_rewards(everything[2:], ended), (everything[2:] - everything.mean()) / everything.std()
    )


def test_no_normalization() -> None:
    normalizer = RewardNormalizer(spec(rewardNormalization="none"), mean=2.0, std=4.0)
    np.testing.assert_allclose(normalizer.rollout_rewards(np.array([0.25, 4.0]), np.array([True, True])), [0.25, 4.0])


def test_evaluations_have_one_scale() -> None:
    """The scale is that of the running statistics at the first evaluation: equal answers have equal rewards later, and
    better answers higher rewards, without a clip. It resumes from its state."""
    normalizer = RewardNormalizer(spec(rewardClip=2, missingEosPenalty=1.5), None, None)
    ended = np.array([True, False])
    normalizer.rollout_rewards(np.array([0.0, 4.0]), ended)  # mean 2, deviation 2
    np.testing.assert_allclose(normalizer.evaluation_rewards(np.array([4.0, 4.0]), ended), [1.0, -0.5])
    normalizer.rollout_rewards(np.array([30.0, 40.0]), ended)
    np.testing.assert_allclose(normalizer.evaluation_rewards(np.array([4.0, 40.0]), ended), [1.0, 17.5])
    resumed = RewardNormalizer(spec(rewardClip=2, missingEosPenalty=1.5), None, None)
    resumed.load_state_dict(normalizer.state_dict())
    assert resumed.running == normalizer.running
    np.testing.assert_allclose(resumed.evaluation_rewards(np.array([4.0, 40.0]), ended), [1.0, 17.5])


def test_an_evaluation_has_the_rewards_of_a_rollout() -> None:
    normalizer = RewardNormalizer(spec(rewardClip=3, missingEosPenalty=1.5), mean=2.0, std=4.0, ignores_stop_token=True)
    scores, ended = np.array([4.0, 100.0, 4.0, 9.0]), np.array([True, True, False, True])
    empty = np.array([False, False, False, True])
    expected = normalizer.rollout_rewards(scores, ended, empty)
    np.testing.assert_allclose(expected, [0.5, 3.0, -1.0, -3.0])
    np.testing.assert_allclose(normalizer.evaluation_rewards(scores, ended, empty), expected)


def test_equal_scores_have_rewards_of_zero() -> None:
    normalizer = RewardNormalizer(spec(rewardNormalization="running"), mean=None, std=None)
    scores = normalizer.rollout_rewards(np.array([7.0, 7.0]), np.array([True, True]))
    assert all(math.isfinite(score) for score in scores)
    np.testing.assert_allclose(scores, [0.0, 0.0])


def test_statistics_resume_from_their_state() -> None:
    before, after = (RewardNormalizer(spec(rewardNormalization="running"), None, None) for _ in range(2))
    before.rollout_rewards(np.array([1.0, 5.0]), np.array([True, True]))
    after.load_state_dict(before.state_dict())
    assert after.running == before.running


def test_an_empty_answer_has_the_lowest_reward_if_the_reward_model_ignores_the_stop_token() -> None:
    scores, ended, empty = np.array([9.0, 1.0]), np.array([True, True]), np.array([True, False])
    settings = spec(rewardNormalization="none", rewardClip=5)
    np.testing.assert_allclose(
        RewardNormalizer(settings, None, None, ignores_stop_token=True).rollout_rewards(scores, ended, empty),
        [-5.0, 1.0],
    )
    np.testing.assert_allclose(RewardNormalizer(settings, None, None).rollout_rewards(scores, ended, empty), [5.0, 1.0])
