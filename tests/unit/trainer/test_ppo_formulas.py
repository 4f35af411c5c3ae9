"""PPO's formulas, against values worked out by hand."""

import math

import numpy as np
import pytest
from finetune_api.stages import PpoSpec
from finetune_trainer.stages.ppo import kl
from finetune_trainer.stages.ppo.advantages import Mask, gae, whiten
from finetune_trainer.stages.ppo.rewards import Normalizer, Running


def spec(**settings: object) -> PpoSpec:
    return PpoSpec.model_validate({"rewardModel": {"source": "pvc://models/reward"}, **settings})


def mask(*lengths: int) -> Mask:
    return np.arange(max(lengths)) < np.array(lengths)[:, None]


def test_advantages_of_a_row_of_three_tokens() -> None:
    """gamma 0.5, lambda 0.5: deltas are 1 + .5*2 - 1 = 1, 0 + .5*4 - 2 = 0 and 8 - 4 = 4, discounted by 0.25."""
    rewards, values = np.array([[1.0, 0.0, 8.0]]), np.array([[1.0, 2.0, 4.0]])
    advantages, returns = gae(rewards, values, mask(3), 0.5, 0.5)
    np.testing.assert_allclose(advantages, [[1 + 0.25 * 1.0, 0 + 0.25 * 4, 4.0]])
    np.testing.assert_allclose(returns, [[2.25, 3.0, 8.0]])


def test_what_lies_behind_an_answer_does_not_count() -> None:
    """A short answer beside a long one has the advantages that it has alone, whatever stands in its padding."""
    rewards, values = np.array([[0.0, 1.0, 99.0], [1.0, 1.0, 1.0]]), np.array([[0.3, 0.2, 99.0], [0.1, 0.1, 0.1]])
    together, _ = gae(rewards, values, mask(2, 3), 1.0, 0.95)
    alone, _ = gae(rewards[:1, :2], values[:1, :2], mask(2), 1.0, 0.95)
    np.testing.assert_allclose(together[0], [*alone[0], 0.0])


def test_with_lambda_1_returns_are_what_is_still_to_come() -> None:
    rewards, values = np.array([[1.0, 2.0, 3.0]]), np.array([[7.0, -5.0, 0.5]])
    _, returns = gae(rewards, values, mask(3), 1.0, 1.0)
    np.testing.assert_allclose(returns, [[6.0, 5.0, 3.0]])


def test_whitened_over_all_answers() -> None:
    values = np.array([[1.0, 2.0, 1e6], [3.0, 4.0, 5.0]])
    white = whiten(values, mask(2, 3))
    there = white[mask(2, 3)]
    assert there.mean() == pytest.approx(0.0, abs=1e-12)
    assert there.std() == pytest.approx(1.0, abs=1e-6)
    assert white[0, 2] == 0


def test_whitened_rewards_keep_their_mean() -> None:
    white = whiten(np.array([[1.0, 3.0]]), mask(2), centre=False)
    np.testing.assert_allclose(white, [[1.0, 3.0]], atol=1e-6)  # mean 2, deviation 1


def test_each_token_pays_for_its_divergence_and_the_last_gets_the_score() -> None:
    policy, reference = (
        np.array([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0]]),
        np.array([[-2.0, -2.5, 5.0], [-1.0, 0.0, -3]]),
    )
    apart = kl.divergence(policy, reference, mask(2, 3))
    np.testing.assert_allclose(apart, [[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
    rewards = kl.rewards(np.array([10.0, 20.0]), apart, mask(2, 3), 0.2)
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
    made = kl.controller(spec(klCoefficient=0.5, klTarget=6, klHorizon=10_000))
    made.update(measured, answers=100)
    assert made.coefficient == pytest.approx(0.5 * factor)


def test_a_fixed_coefficient_stays() -> None:
    made = kl.controller(spec(klControl="fixed", klCoefficient=0.5))
    made.update(600.0, answers=10_000)
    assert made.coefficient == 0.5


def test_a_controller_goes_on_where_it_was() -> None:
    before, after = kl.controller(spec()), kl.controller(spec())
    before.update(60.0, answers=5000)
    after.load_state_dict(before.state_dict())
    assert after.coefficient == before.coefficient != kl.controller(spec()).coefficient


def test_running_statistics_are_those_of_all_scores() -> None:
    scores = np.array([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0])
    running = Running()
    running.add(scores[:3])
    running.add(scores[3:4])
    running.add(scores[4:])
    assert running.mean == pytest.approx(scores.mean())
    assert running.std == pytest.approx(scores.std())


def test_scores_on_the_scale_that_rm_measured() -> None:
    """(score - 2) / 4, within 3; an answer without its end is 1.5 worse, also beyond the bound."""
    normalize = Normalizer(spec(rewardClip=3, missingEosPenalty=1.5), mean=2.0, std=4.0)
    ended = np.array([True, True, False, False])
    np.testing.assert_allclose(normalize(np.array([4.0, 100.0, 4.0, -100.0]), ended), [0.5, 3.0, -1.0, -4.5])


@pytest.mark.parametrize("kind", ["model", "running"])
def test_scores_on_the_scale_of_those_before(kind: str) -> None:
    """What rm didn't measure is measured on the way; the rollout at hand counts, too."""
    normalize = Normalizer(spec(rewardNormalization=kind, rewardClip=100), mean=None, std=None)
    ended = np.array([True, True])
    np.testing.assert_allclose(normalize(np.array([0.0, 2.0]), ended), [-1.0, 1.0])
    everything = np.array([0.0, 2.0, 4.0, 6.0])
    np.testing.assert_allclose(
        normalize(everything[2:], ended), (everything[2:] - everything.mean()) / everything.std()
    )


def test_scores_as_they_are() -> None:
    normalize = Normalizer(spec(rewardNormalization="none"), mean=2.0, std=4.0)
    np.testing.assert_allclose(normalize(np.array([0.25, 4.0]), np.array([True, True])), [0.25, 4.0])


def test_evaluations_are_on_one_scale_whatever_comes_between_them() -> None:
    """That of the running statistics at the first of them: the same answers are worth as much later, and better ones
    more, without a bound. It goes on where it was."""
    normalize = Normalizer(spec(rewardClip=2, missingEosPenalty=1.5), None, None)
    ended = np.array([True, False])
    normalize(np.array([0.0, 4.0]), ended)  # mean 2, deviation 2
    np.testing.assert_allclose(normalize.held_out(np.array([4.0, 4.0]), ended), [1.0, -0.5])
    normalize(np.array([30.0, 40.0]), ended)
    np.testing.assert_allclose(normalize.held_out(np.array([4.0, 40.0]), ended), [1.0, 17.5])
    resumed = Normalizer(spec(rewardClip=2, missingEosPenalty=1.5), None, None)
    resumed.load_state_dict(normalize.state_dict())
    assert resumed.running == normalize.running
    np.testing.assert_allclose(resumed.held_out(np.array([4.0, 40.0]), ended), [1.0, 17.5])


def test_an_evaluation_is_worth_what_a_rollout_is() -> None:
    normalize = Normalizer(spec(rewardClip=3, missingEosPenalty=1.5), mean=2.0, std=4.0, blind=True)
    scores, ended = np.array([4.0, 100.0, 4.0, 9.0]), np.array([True, True, False, True])
    empty = np.array([False, False, False, True])
    expected = normalize(scores, ended, empty)
    np.testing.assert_allclose(expected, [0.5, 3.0, -1.0, -3.0])
    np.testing.assert_allclose(normalize.held_out(scores, ended, empty), expected)


def test_one_score_for_all_tells_nothing_apart() -> None:
    normalize = Normalizer(spec(rewardNormalization="running"), mean=None, std=None)
    scores = normalize(np.array([7.0, 7.0]), np.array([True, True]))
    assert all(math.isfinite(score) for score in scores)
    np.testing.assert_allclose(scores, [0.0, 0.0])


def test_statistics_go_on_where_they_were() -> None:
    before, after = (Normalizer(spec(rewardNormalization="running"), None, None) for _ in range(2))
    before(np.array([1.0, 5.0]), np.array([True, True]))
    after.load_state_dict(before.state_dict())
    assert after.running == before.running


def test_an_empty_answer_is_worth_the_least_where_the_reward_model_does_not_see_its_end() -> None:
    scores, ended, empty = np.array([9.0, 1.0]), np.array([True, True]), np.array([True, False])
    settings = spec(rewardNormalization="none", rewardClip=5)
    np.testing.assert_allclose(Normalizer(settings, None, None, blind=True)(scores, ended, empty), [-5.0, 1.0])
    np.testing.assert_allclose(Normalizer(settings, None, None)(scores, ended, empty), [5.0, 1.0])
