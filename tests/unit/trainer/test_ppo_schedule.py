"""Which rows PPO's steps learn from."""

from finetune_trainer.stages.ppo.schedule import Schedule, dealt

SCHEDULE = Schedule(prompts=10, rollout_batch=8, global_batch=4, epochs=3, seed=1)


def test_a_rollout_is_learned_from_so_many_times() -> None:
    """Three passes of two steps each: every pass has each row once, no two in the same order."""
    assert [SCHEDULE.rollout(step) for step in range(13)] == [0] * 6 + [1] * 6 + [2]
    passes = [SCHEDULE.rows_of(step) + SCHEDULE.rows_of(step + 1) for step in (0, 2, 4)]
    assert [sorted(rows) for rows in passes] == [list(range(8))] * 3
    assert passes[0] != passes[1] != passes[2]
    assert SCHEDULE.rows_of(6) != SCHEDULE.rows_of(0)


def test_every_prompt_is_answered_in_each_pass_over_the_data() -> None:
    """Ten prompts need two rollouts of eight; the next two have them in another order."""
    first = SCHEDULE.prompts_of(0) + SCHEDULE.prompts_of(1)
    second = SCHEDULE.prompts_of(2) + SCHEDULE.prompts_of(3)
    assert set(first) == set(second) == set(range(10))
    assert first != second
    assert SCHEDULE.items == 2 * 8 * 3


def test_ranks_get_as_many_batches_and_all_rows() -> None:
    rows, lengths = SCHEDULE.rows_of(0), [3, 9, 1, 7, 5, 2, 8, 4]
    shares = [dealt(rows, lengths, 2, rank, 2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [1, 1]
    assert sorted(row for share in shares for batch in share for row in batch) == sorted(rows)
    assert lengths[shares[0][0][0]] == max(lengths[row] for row in rows)
