"""Sampling with keyed noise."""

import math

import pytest
import torch
from finetune_api.stages import PpoSpec
from finetune_trainer.stages.ppo.sampling import GAMMA, KeyedGumbel, _mix, gumbel, logits_processors, row_key


def keys(*rows: int, rollout: int = 0, seed: int = 1) -> list[int]:
    return [row_key(seed, rollout, row) for row in rows]


def noise(batch: list[int], position: int = 0, size: int = 50) -> torch.Tensor:
    return gumbel(torch.tensor(batch), position, size)


def test_the_hash_is_splitmix64() -> None:
    """The first outputs of the reference implementation with seed 0."""
    outputs = _mix(torch.arange(1, 4) * GAMMA)
    assert [value % 2**64 for value in outputs.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_a_row_samples_the_same_in_any_batch() -> None:
    together = noise(keys(0, 1, 2, 3), position=5)
    assert torch.equal(noise(keys(2), position=5)[0], together[2])
    assert torch.equal(noise(keys(3, 1), position=5)[1], together[1])


def test_rows_positions_rollouts_and_seeds_have_independent_noise() -> None:
    draws = [
        noise(keys(0)),
        noise(keys(1)),
        noise(keys(0), position=1),
        noise(keys(0, rollout=1)),
        noise(keys(0, seed=2)),
    ]
    correlations = torch.corrcoef(torch.cat(draws))
    assert correlations.fill_diagonal_(0).abs().max() < 0.5


def test_greedy_over_noise_is_sampling() -> None:
    """20,000 rows sample each token at the rate of its probability, to four standard errors."""
    rows = 20_000
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    scores = probabilities.log().expand(rows, 4)
    drawn = KeyedGumbel(keys(*range(rows)), 3)(torch.zeros(rows, 3, dtype=torch.long), scores).argmax(-1)  # type: ignore[arg-type]
    shares = drawn.bincount(minlength=4) / rows
    error = (probabilities * (1 - probabilities) / rows).sqrt()
    assert ((shares - probabilities).abs() < 4 * error).all()


def test_noise_has_mean_and_deviation_of_gumbel() -> None:
    values = noise(keys(0), size=200_000)
    assert values.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert values.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


def test_positions_count_from_the_end_of_the_prompt() -> None:
    drawer = KeyedGumbel(keys(4), 7)
    scores = torch.zeros(1, 50)
    first = drawer(torch.zeros(1, 7, dtype=torch.long), scores)  # type: ignore[arg-type]
    second = drawer(torch.zeros(1, 8, dtype=torch.long), scores)  # type: ignore[arg-type]
    assert torch.equal(first, noise(keys(4), 0))
    assert torch.equal(second, noise(keys(4), 1))


@pytest.mark.parametrize(("settings", "allowed"), [({"topK": 2}, {0, 1}), ({"topP": 0.75}, {0, 1}), ({}, {0, 1, 2, 3})])
def test_sampling_is_limited_to_top_k_and_top_p(settings: dict[str, float], allowed: set[int]) -> None:
    spec = PpoSpec.model_validate({"rewardModel": {"source": "pvc://models/reward"}, **settings})
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(500, 1)
    drawn = logits_processors(spec, keys(*range(500)), 3, 4)(torch.zeros(500, 3, dtype=torch.long), scores).argmax(-1)  # type: ignore[arg-type]
    assert set(drawn.tolist()) == allowed


def test_a_low_temperature_samples_the_likeliest_token() -> None:
    spec = PpoSpec.model_validate({"rewardModel": {"source": "pvc://models/reward"}, "temperature": 0.01})
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(200, 1)
    drawn = logits_processors(spec, keys(*range(200)), 3, 4)(torch.zeros(200, 3, dtype=torch.long), scores).argmax(-1)  # type: ignore[arg-type]
    assert set(drawn.tolist()) == {0}


def test_ids_beyond_the_tokenizer_are_never_sampled() -> None:
    spec = PpoSpec.model_validate({"rewardModel": {"source": "pvc://models/reward"}})
    scores = torch.tensor([0.1, 0.1, 0.4, 0.4]).log().repeat(200, 1)
    drawn = logits_processors(spec, keys(*range(200)), 3, 2)(torch.zeros(200, 3, dtype=torch.long), scores).argmax(-1)  # type: ignore[arg-type]
    assert set(drawn.tolist()) == {0, 1}
