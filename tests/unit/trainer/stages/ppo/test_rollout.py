"""The schedule of rollouts and minibatches."""

from finetune_api.micro_batch import MicroBatch
from finetune_trainer.stages.ppo.rollout import Schedule, micro_batches

SCHEDULE = Schedule(prompt_count=10, rollout_batch=8, global_batch=4, epochs=3, seed=1)


def test_steps_pass_over_a_rollout_once_per_epoch() -> None:
    """Three passes of two steps: each pass has every row once, in its own order."""
    assert [SCHEDULE.rollout(step) for step in range(13)] == [0] * 6 + [1] * 6 + [2]
    passes = [SCHEDULE.minibatch(step) + SCHEDULE.minibatch(step + 1) for step in (0, 2, 4)]
    assert [sorted(rows) for rows in passes] == [list(range(8))] * 3
    assert passes[0] != passes[1] != passes[2]
    assert SCHEDULE.minibatch(6) != SCHEDULE.minibatch(0)


def test_every_prompt_is_answered_once_per_pass() -> None:
    """Ten prompts need two rollouts of eight. The next two have another order."""
    first = SCHEDULE.prompts(0) + SCHEDULE.prompts(1)
    second = SCHEDULE.prompts(2) + SCHEDULE.prompts(3)
    assert set(first) == set(second) == set(range(10))
    assert first != second
    assert SCHEDULE.samples_per_pass == 2 * 8 * 3


def test_ranks_share_all_rows_in_the_same_number_of_batches() -> None:
    rows, lengths = SCHEDULE.minibatch(0), [3, 9, 1, 7, 5, 2, 8, 4]
    shares = [micro_batches(rows, lengths, MicroBatch(2), rank, 2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [1, 1]
    assert sorted(row for share in shares for batch in share for row in batch) == sorted(rows)
    assert lengths[shares[0][0][0]] == max(lengths[row] for row in rows)
