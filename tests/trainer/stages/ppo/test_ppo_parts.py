"""Parts of PPO on tensors and tiny models: policy outputs, rollouts, reward models, and the state in checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.stages import PpoSpec
from finetune_api.tuning import TuningSpec
from finetune_trainer.checkpoints import stage_state
from finetune_trainer.data.row import IGNORED
from finetune_trainer.model import base, trainable, value_head
from finetune_trainer.stages.ppo import policy_outputs
from finetune_trainer.stages.ppo.collector import Experience, make_rollout
from finetune_trainer.stages.ppo.reward_models import ModelScorer, share_weights
from finetune_trainer.stages.ppo.rewards import RewardNormalizer, kl_controller
from finetune_trainer.stages.ppo.rollout import PpoState, answer_batch
from finetune_trainer.training import logprobs

from tests.trainer.support import stages, tiny

STOP = 9


def spec(**settings: Any) -> PpoSpec:
    return PpoSpec.model_validate({"rewardModel": {"source": "pvc://models/reward"}, **settings})


def state_of(settings: PpoSpec) -> PpoState:
    return PpoState(kl_controller(settings), RewardNormalizer(settings, None, None))


def experience(
    row: int, answer: Sequence[int], score: float, log_prob: float = -1.0, ref_log_prob: float = -1.0
) -> Experience:
    log_probs, values, ref_log_probs = (
        np.full(len(answer), value, dtype=np.float32) for value in (log_prob, 0.5, ref_log_prob)
    )
    return Experience(row, [7] * (row + 1), list(answer), score, log_probs, values, ref_log_probs)


def test_log_probabilities_are_of_the_distribution_that_answers_are_sampled_from(model: Path) -> None:
    """The softmax of logits / temperature, at the tokens of answers alone, row after row."""
    policy: Any = base.load(model, "pvc://models/model", torch.float32)
    texts, prompts = [[11, 12, 13, 14, 15], [21, 22, 23]], [3, 1]
    batch = answer_batch(texts, prompts)
    with torch.no_grad():
        distributions = [(policy(input_ids=torch.tensor([text])).logits[0] / 0.7).log_softmax(-1) for text in texts]
    places = [(0, 2, 14), (0, 3, 15), (1, 0, 22), (1, 1, 23)]
    logprobs.add_fused_head(policy, 0.7, policy_outputs.HEAD_OUTPUTS)
    value_head.add(policy)
    outputs = policy_outputs.forward(policy, batch)
    expected = torch.stack([distributions[row][place, token] for row, place, token in places])
    entropies = torch.stack(
        [-(distributions[row][place].exp() * distributions[row][place]).sum() for row, place, _ in places]
    )
    assert torch.allclose(outputs.log_probs, expected, atol=1e-5)
    assert outputs.entropy is not None
    assert torch.allclose(outputs.entropy, entropies, atol=1e-4)
    assert outputs.values is not None
    assert outputs.values.tolist() == [0.0] * 4


def test_dropout_is_off_in_training_mode(tmp_path: Path) -> None:
    """Dropout of layers and of attention."""
    folder = tiny.save_model(tmp_path / "model", attention_dropout=0.5)
    policy: Any = torch.nn.Sequential(base.load(folder, "pvc://models/model", torch.float32), torch.nn.Dropout(0.5))
    policy_outputs.disable_dropout(policy)
    policy.train()
    ids = torch.arange(5, 15).reshape(1, -1)
    once, again = (policy[1](policy[0](input_ids=ids).logits) for _ in range(2))
    assert torch.equal(once, again)


def test_a_rollout_does_not_depend_on_the_order_of_experiences() -> None:
    settings = spec()
    answers = [
        experience(0, [1, STOP], 2.0, log_prob=-0.5),
        experience(1, [1, 2, 3], -1.0),
        experience(2, [STOP], 0.5, ref_log_prob=-3.0),
    ]
    first, second = (make_rollout(0, order, settings, state_of(settings), [STOP]) for order in (answers, answers[::-1]))
    assert first.metrics == second.metrics
    assert first.token_ids.tolist() == [[7, 1, STOP, 0, 0], [7, 7, 1, 2, 3], [7, 7, 7, STOP, 0]]
    for name in ("advantages", "returns", "log_probs", "scores"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_a_rollout_computed_by_hand() -> None:
    """gamma and lambda 1: returns are sums of later rewards. Each token of the first answer is 0.5 nats off and
    pays 0.2 x 0.5; its score is 2, the other's 1, less 3 for having no end."""
    settings = spec(rewardNormalization="none", gaeLambda=1, klCoefficient=0.2, klControl="fixed", missingEosPenalty=3)
    rollout = make_rollout(
        4, [experience(0, [1, STOP], 2.0, log_prob=-0.5), experience(1, [1], 1.0)], settings, state_of(settings), [STOP]
    )
    np.testing.assert_allclose(rollout.returns, [[1.8, 1.9], [-2.0, 0.0]], atol=1e-6)
    assert rollout.metrics == pytest.approx(
        {
            "reward": 1.5,
            "reward_normalized": 0.0,
            "kl": 0.5,
            "kl_coefficient": 0.2,
            "answer_length": 1.5,
            "eos_rate": 0.5,
        }
    )
    unwhitened = np.array([1.3, 1.4, -2.5])  # returns less the values, all 0.5
    expected = (unwhitened - unwhitened.mean()) / unwhitened.std()
    np.testing.assert_allclose(rollout.advantages[[0, 0, 1], [0, 1, 0]], expected, rtol=1e-5)


def test_a_micro_batch_has_the_values_of_its_rows() -> None:
    settings = spec()
    rollout = make_rollout(
        0,
        [experience(0, [1, STOP], 2.0), experience(1, [3], 1.0), experience(2, [4, 5], 0.0)],
        settings,
        state_of(settings),
        [STOP],
    )
    batch = rollout.batch([2, 0])
    assert batch["input_ids"].tolist() == [[7, 7, 7, 4, 5, 7, 1, STOP]]
    assert batch["lengths"] == (5, 3)
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [4, 5] + [IGNORED, 1, STOP]]
    assert batch["advantages"].tolist() == [*rollout.advantages[2], *rollout.advantages[0]]


def test_a_checkpoint_holds_rollout_coefficient_and_statistics(tmp_path: Path) -> None:
    settings = spec(rewardNormalization="running")
    before, after = state_of(settings), state_of(settings)
    before.rollout = make_rollout(3, [experience(0, [1, STOP], 2.0), experience(1, [3], 1.0)], settings, before, [STOP])
    stage_state.save(tmp_path, {"stage": before})
    stage_state.load(tmp_path, {"stage": after})
    assert after.rollout is not None
    assert (after.rollout.number, after.rollout.metrics) == (3, before.rollout.metrics)
    for name in (
        "token_ids",
        "prompt_lengths",
        "answer_lengths",
        "scores",
        "log_probs",
        "values",
        "advantages",
        "returns",
    ):
        assert np.array_equal(getattr(after.rollout, name), getattr(before.rollout, name)), name
    assert after.kl == before.kl
    assert after.normalizer.running == before.normalizer.running


def test_a_reward_model_scores_the_token_that_it_was_trained_on(tmp_path: Path) -> None:
    """That is an answer's stop token, as in the rows of stage rm. Scores are in the order of the texts."""
    from transformers import AutoModelForSequenceClassification

    root = stages.save_volumes(tmp_path, rows=3)
    run = tiny.make_run(root, stages.job("ppo"))
    stop = tiny.tokenizer().eos_token_id
    scorer = ModelScorer(run)
    texts = [[11, 12, stop], [11, 12, 13, 14, 15, 16], [21, 22, 23, stop], [31], [41, stop]]
    scores = scorer.score_rollout(0, dict(enumerate(texts)))

    judge: Any = AutoModelForSequenceClassification.from_pretrained(root / "models" / "reward")
    with torch.no_grad():
        expected = [
            float(judge.model(torch.tensor([text])).last_hidden_state[0, -1] @ judge.score.weight[0]) for text in texts
        ]
    assert list(scores) == [0, 1, 2, 3, 4]
    assert list(scores.values()) == pytest.approx(expected, abs=1e-5)


def test_weights_that_reward_model_and_policy_share_are_in_memory_once(model: Path) -> None:
    """A reward model on the policy's base, of which one layer was trained. Scores do not change."""
    from transformers import AutoModelForSequenceClassification

    tuning = TuningSpec.model_validate({"method": "lora", "lora": {"rank": 2}})
    policy: Any = trainable.apply(base.load(model, "pvc://models/model", torch.float32), tuning, 0)
    torch.manual_seed(0)
    judge: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    judge.requires_grad_(False)
    own = judge.model.layers[1].mlp.up_proj.weight
    own += 1
    ids = torch.arange(5, 15).reshape(1, -1)
    before = judge(ids).logits
    shared = share_weights(judge, torch.device("cpu"), policy)
    assert torch.equal(judge(ids).logits, before)

    backbone = policy.get_base_model().model
    assert judge.model.embed_tokens.weight.data_ptr() == backbone.embed_tokens.weight.data_ptr()
    adapted = backbone.layers[0].self_attn.q_proj.base_layer
    assert judge.model.layers[0].self_attn.q_proj.weight.data_ptr() == adapted.weight.data_ptr()
    whole = sum(weight.numel() * weight.element_size() for weight in judge.parameters())
    assert shared == whole - sum(weight.numel() * weight.element_size() for weight in (own, judge.score.weight))
    assert own.data_ptr() != backbone.layers[1].mlp.up_proj.base_layer.weight.data_ptr()
