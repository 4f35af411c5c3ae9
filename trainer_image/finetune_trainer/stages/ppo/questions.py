"""Held-out prompts in batches, for the evaluation: it is one of all stages, and asks items for a collator."""

from collections.abc import Callable, Sequence

from finetune_trainer.data.prompts import Prompts
from finetune_trainer.stages.engine import Batch
from finetune_trainer.stages.ppo.buffer import collate


class Questions(Prompts):
    """The prompts of one split."""

    def collator(self, pad_id: int, _attention: str) -> Callable[[Sequence[int]], Batch]:
        """Items -> prompts as rows, padded at the right."""

        def batch(items: Sequence[int]) -> Batch:
            prompts = [self.prompt(item) for item in items]
            return collate(prompts, [len(prompt) for prompt in prompts], pad_id)

        return batch


def prompts_of(batch: Batch) -> list[list[int]]:
    """As they were, without padding."""
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
    return [ids[:length] for ids, length in rows]
