"""What PPO makes of answers, with tensors and tiny models: what is said of them, their scores, and what is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.stages import PpoSpec
from finetune_api.tuning import TuningSpec
from finetune_trainer.checkpoints import kept
from finetune_trainer.data.row import IGNORED
from finetune_trainer.model import adapters, base, value_head
from finetune_trainer.stages import logprobs
from finetune_trainer.stages.ppo import heads, kl, sharing
from finetune_trainer.stages.ppo.buffer import Memory, collate
from finetune_trainer.stages.ppo.experience import Seen, rollout
from finetune_trainer.stages.ppo.reward import ModelScorer
from finetune_trainer.stages.ppo.rewards import Normalizer

from tests.trainer import stages, tiny

STOP = 9


def spec(**settings: Any) -> PpoSpec:
    return PpoSpec.model_validate({"rewardModel": {"source": "pvc://models/reward"}, **settings})


def memory(settings: PpoSpec) -> Memory:
    return Memory(kl.controller(settings), Normalizer(settings, None, None))


def seen(row: int, answer: Sequence[int], score: float, log_prob: float = -1.0, reference: float = -1.0) -> Seen:
    of = [np.full(len(answer), value, dtype=np.float32) for value in (log_prob, 0.5, reference)]
    return Seen(row, [7] * (row + 1), list(answer), score, of[0], of[1], of[2])


def test_log_probabilities_are_those_of_what_answers_are_drawn_from(model: Path) -> None:
    """The softmax of logits by temperature, at the tokens of answers alone, row after row."""
    policy: Any = base.load(model, "pvc://models/model", torch.float32)
    texts, prompts = [[11, 12, 13, 14, 15], [21, 22, 23]], [3, 1]
    batch = collate(texts, prompts, pad_id=0)
    with torch.no_grad():
        logits = policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits / 0.7
    distributions = logits.log_softmax(-1)
    places = [(0, 2, 14), (0, 3, 15), (1, 0, 22), (1, 1, 23)]
    logprobs.add(policy, 0.7, heads.OUTPUTS)
    value_head.add(policy)
    said = heads.say(policy, batch)
    expected = torch.stack([distributions[row, place, token] for row, place, token in places])
    entropies = torch.stack(
        [-(distributions[row, place].exp() * distributions[row, place]).sum() for row, place, _ in places]
    )
    assert torch.allclose(said.log_probs, expected, atol=1e-5)
    assert said.entropy is not None
    assert torch.allclose(said.entropy, entropies, atol=1e-4)
    assert said.values is not None
    assert said.values.tolist() == [0.0] * 4


def test_nothing_is_left_to_chance_while_training(tmp_path: Path) -> None:
    """Dropout of layers and of attention is off, though the model is in training mode."""
    folder = tiny.save_model(tmp_path / "model", attention_dropout=0.5)
    policy: Any = torch.nn.Sequential(base.load(folder, "pvc://models/model", torch.float32), torch.nn.Dropout(0.5))
    heads.without_dropout(policy)
    policy.train()
    ids = torch.arange(5, 15).reshape(1, -1)
    once, again = (policy[1](policy[0](input_ids=ids).logits) for _ in range(2))
    assert torch.equal(once, again)


def test_the_same_rollout_whoever_saw_what() -> None:
    settings = spec()
    answers = [seen(0, [1, STOP], 2.0, log_prob=-0.5), seen(1, [1, 2, 3], -1.0), seen(2, [STOP], 0.5, reference=-3.0)]
    one, other = (rollout(0, order, settings, memory(settings), [STOP]) for order in (answers, answers[::-1]))
    assert one.facts == other.facts
    assert one.ids.tolist() == [[7, 1, STOP, 0, 0], [7, 7, 1, 2, 3], [7, 7, 7, STOP, 0]]
    for name in ("advantages", "returns", "log_probs", "scores"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_rollout_worked_out_by_hand() -> None:
    """gamma and lambda 1: returns are the rewards still to come. Each token of the first answer is 0.5 nats off and
    pays 0.2 x 0.5; its score is 2, the other's 1, less 3 for having no end."""
    settings = spec(rewardNormalization="none", gaeLambda=1, klCoefficient=0.2, klControl="fixed", missingEosPenalty=3)
    made = rollout(4, [seen(0, [1, STOP], 2.0, log_prob=-0.5), seen(1, [1], 1.0)], settings, memory(settings), [STOP])
    np.testing.assert_allclose(made.returns, [[1.8, 1.9], [-2.0, 0.0]], atol=1e-6)
    assert made.facts == pytest.approx(
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
    np.testing.assert_allclose(made.advantages[[0, 0, 1], [0, 1, 0]], expected, rtol=1e-5)


def test_a_micro_batch_has_what_belongs_to_its_rows() -> None:
    settings = spec()
    made = rollout(
        0, [seen(0, [1, STOP], 2.0), seen(1, [3], 1.0), seen(2, [4, 5], 0.0)], settings, memory(settings), [STOP]
    )
    batch = made.batch([2, 0], pad_id=0)
    assert batch["input_ids"].tolist() == [[7, 7, 7, 4, 5], [7, 1, STOP, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [4, 5], [IGNORED, 1, STOP, IGNORED, IGNORED]]
    assert int(batch["tokens"]) == 8
    assert batch["advantages"].tolist() == [*made.advantages[2], *made.advantages[0]]


def test_a_checkpoint_holds_the_rollout_the_coefficient_and_the_statistics(tmp_path: Path) -> None:
    settings = spec(rewardNormalization="running")
    before, after = memory(settings), memory(settings)
    before.rollout = rollout(3, [seen(0, [1, STOP], 2.0), seen(1, [3], 1.0)], settings, before, [STOP])
    kept.write(tmp_path, {"stage": before})
    kept.read(tmp_path, {"stage": after})
    assert after.rollout is not None
    assert (after.rollout.number, after.rollout.facts) == (3, before.rollout.facts)
    for name in ("ids", "prompts", "answers", "scores", "log_probs", "values", "advantages", "returns"):
        assert np.array_equal(getattr(after.rollout, name), getattr(before.rollout, name)), name
    assert after.control == before.control
    assert after.normalize.running == before.normalize.running


def test_a_reward_model_sees_what_it_saw_in_training(tmp_path: Path) -> None:
    """Its last token is an answer's stop token, as in the rows of stage rm; scores come in the texts' order."""
    from transformers import AutoModelForSequenceClassification

    root = stages.save_volumes(tmp_path, rows=3)
    run = tiny.make_run(root, stages.job("ppo"))
    stop = tiny.tokenizer().eos_token_id
    scorer = ModelScorer(run)
    texts = [[11, 12, stop], [11, 12, 13, 14, 15, 16], [21, 22, 23, stop], [31], [41, stop]]
    found = scorer.of_rollout(0, dict(enumerate(texts)))

    judge: Any = AutoModelForSequenceClassification.from_pretrained(root / "models" / "reward")
    with torch.no_grad():
        expected = [
            float(judge.model(torch.tensor([text])).last_hidden_state[0, -1] @ judge.score.weight[0]) for text in texts
        ]
    assert list(found) == [0, 1, 2, 3, 4]
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


def test_what_reward_model_and_policy_have_in_common_is_there_once(model: Path) -> None:
    """A reward model on the policy's base; one of its layers was trained, and is its own. Scores stay what they are."""
    from transformers import AutoModelForSequenceClassification

    tuning = TuningSpec.model_validate({"method": "lora", "lora": {"rank": 2}})
    policy: Any = adapters.apply(base.load(model, "pvc://models/model", torch.float32), tuning, 0)
    torch.manual_seed(0)
    judge: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    judge.requires_grad_(False)
    own = judge.model.layers[1].mlp.up_proj.weight
    own += 1
    ids = torch.arange(5, 15).reshape(1, -1)
    before = judge(ids).logits
    shared = sharing.place(judge, torch.device("cpu"), policy)
    assert torch.equal(judge(ids).logits, before)

    backbone = policy.get_base_model().model
    assert judge.model.embed_tokens.weight.data_ptr() == backbone.embed_tokens.weight.data_ptr()
    adapted = backbone.layers[0].self_attn.q_proj.base_layer
    assert judge.model.layers[0].self_attn.q_proj.weight.data_ptr() == adapted.weight.data_ptr()
    whole = sum(weight.numel() * weight.element_size() for weight in judge.parameters())
    assert shared == whole - sum(weight.numel() * weight.element_size() for weight in (own, judge.score.weight))
    assert own.data_ptr() != backbone.layers[1].mlp.up_proj.base_layer.weight.data_ptr()
