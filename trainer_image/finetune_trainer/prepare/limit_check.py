"""Whether the rows fit the models that read them: no row is longer than a model's positions, and no token is beyond its
embeddings. Otherwise training ends in an index error inside a kernel, with a GPU held.

The pipeline calls `check_limits` when lengths and ids are known: also for cached rows, because the key of the data
cache does not depend on the models' limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.contract import ResolvedJob

from finetune_trainer.data.splits import Split
from finetune_trainer.data.tokenize import stop_token
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import model_files

if TYPE_CHECKING:
    from finetune_trainer.model.limits import Limit
    from finetune_trainer.prepare.inputs import Inputs
    from finetune_trainer.prepare.referenced_models import ReferencedModel
    from finetune_trainer.prepare.worker_pool import Tokenization

SplitFacts = Mapping[str, Mapping[str, int]]
"""Split -> its facts, as the manifest of an entry of the data cache has them."""


@dataclass(frozen=True)
class RowNeeds:
    """What the rows need of every model that reads them."""

    longest: int
    """Tokens of the longest row."""
    counted: str
    """A sentence on how they are counted, if that is not obvious."""
    highest_id: int
    token: str
    """The token of that id."""


def trained_length(job: ResolvedJob, splits: SplitFacts) -> int:
    """Tokens of the longest row that is trained, before packing."""
    longest = max(facts["longest"] for facts in splits.values())
    # Stage ppo trains prompts with generated answers. With packing wrapped, rows are not cut but trained in pieces.
    return longest + job.ppo.max_new_tokens if job.ppo else min(longest, job.training.cutoff_length)


def check_limits(job: ResolvedJob, inputs: "Inputs", tokenization: "Tokenization", splits: SplitFacts) -> None:
    """Raises InvalidSpec."""
    from finetune_trainer.model import base, limits, saved_adapter, vocabulary  # torch
    from finetune_trainer.reporting.library_logs import silence_libraries  # transformers

    silence_libraries()
    needs = _row_needs(job, tokenization, splits)
    source, remote_code = job.model.source, model_files.remote_code(job)
    config = base.check(inputs.model.path, source, allow_remote_code=remote_code, kind=base.kind_of(job.stage))
    added = len(tokenization.tokenizer) if vocabulary.adds_tokens(job.model) else 0
    own_rows = saved_adapter.embedding_rows(inputs.adapter.path) if inputs.adapter else 0
    _check_own_ids(needs, limits.tokens(config), max(added, own_rows))
    _check_own_positions(needs, limits.positions(config))
    for model in inputs.referenced:
        # A reference gets the tokens that the job adds. A reward model must know them.
        _check_referenced(needs, model, added if model.use == "reference" else 0)


def _row_needs(job: ResolvedJob, tokenization: "Tokenization", splits: SplitFacts) -> RowNeeds:
    cutoff, longest, counted = job.training.cutoff_length, trained_length(job, splits), ""
    highest = max(facts["highest_id"] for facts in splits.values())
    if job.ppo:
        answer = job.ppo.max_new_tokens
        counted = (
            f". A row is a prompt, here of up to {longest - answer} tokens, and an answer of up to {answer}:"
            " ppo.maxNewTokens must be less than training.cutoffLength"
        )
        if tokenization.template:  # prompts do not have the token that ends an answer
            highest = max(highest, stop_token(tokenization.template))
    elif job.training.packing == "wrapped":
        longest = min(cutoff, max(facts["tokens"] for facts in splits.values()))
        counted = ". With training.packing wrapped, every row is filled up to cutoffLength"
    elif job.stage == "kto":
        longest = min(2 * longest, cutoff)
        counted = ". Stage kto also reads each prompt with the answer of another row"
    token = tokenization.tokenizer.convert_ids_to_tokens(highest) if highest >= 0 else None
    return RowNeeds(longest, counted, highest, repr(token))


def _check_own_ids(needs: RowNeeds, limit: "Limit | None", more_rows: int) -> None:
    """``more_rows``: rows that the embeddings have in training, if they grow."""
    if limit is None or needs.highest_id < max(limit.value, more_rows):
        return
    raise InvalidSpec(
        f"model.source: its tokenizer makes token {needs.highest_id} ({needs.token}), but the model has only"
        f" {limit.value} tokens ({limit.name} in its config.json): tokenizer and weights belong to different models."
        " Copy the tokenizer of the model into its folder. If the token is meant to be new, name it in"
        " model.newSpecialTokens"
    )


def _check_own_positions(needs: RowNeeds, limit: "Limit | None") -> None:
    if limit is None or needs.longest <= limit.value:
        return
    raise InvalidSpec(
        f"training.cutoffLength: rows have up to {needs.longest} tokens, and the model supports {limit.value}"
        f" ({limit.name} in its config.json). Set it to at most {limit.value}{needs.counted}"
    )


def _check_referenced(needs: RowNeeds, model: "ReferencedModel", added: int) -> None:
    """``added``: size of the tokenizer, if the model gets all of its tokens."""
    from finetune_trainer.model import base, limits, saved_adapter  # torch

    kind: base.Kind = "reward" if model.use == "rewardModel" else "causal"
    whole, source = model.model, model.fetched.uri
    config = base.check(whole.path, whole.uri, allow_remote_code=model.remote_code, kind=kind, field=model.field)
    tokens, positions = limits.tokens(config), limits.positions(config)
    rows = saved_adapter.embedding_rows(model.fetched.path) if model.base else 0
    if tokens is not None and needs.highest_id >= max(tokens.value, rows, added):
        raise InvalidSpec(
            f"{model.field}: the job's rows have token {needs.highest_id} ({needs.token}), but {source} has only"
            f" {tokens.value} tokens ({tokens.name} in its config.json). Name a model with all tokens of the job's"
        )
    if positions is not None and needs.longest > positions.value:
        raise InvalidSpec(
            f"{model.field}: rows have up to {needs.longest} tokens, and {source} supports {positions.value}"
            f" ({positions.name} in its config.json). Set training.cutoffLength to at most {positions.value}, or name"
            f" a model with more positions{needs.counted}"
        )


def longest_sample(job: ResolvedJob, train: Split) -> int:
    """Tokens of the longest sample of training, which is the smallest micro-batch: a row, a pack, both rows of a pair,
    or a prompt with its answer."""
    if train.packs is not None:
        return int(train.packs.lengths.max())
    if job.stage in ("rm", "dpo"):
        return int(train.lengths.reshape(-1, 2).sum(axis=1).max())
    return int(train.lengths.max()) + (job.ppo.max_new_tokens if job.ppo else 0)
