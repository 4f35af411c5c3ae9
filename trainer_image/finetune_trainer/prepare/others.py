"""The models besides the job's own: what stages dpo, kto and ppo compare with, and what scores answers in ppo.

Called by ``prepare.run``. Each is a whole model, or an adapter and the model that it goes on. What another job made is
held to the digest that it had when this job was accepted.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_api.contract import ResolvedJob, source_of
from finetune_api.model import ModelSettings
from finetune_api.source import HF_REPOSITORY, HubPath, parse

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.fetch import Fetched
from finetune_trainer.model import folder as model_folder
from finetune_trainer.prepare import tokenizers

Use = Literal["reference", "rewardModel"]


@dataclass(frozen=True)
class Other:
    """A model that the job needs besides its own."""

    use: Use
    field: str
    """Where the job names it."""
    got: Fetched
    base: Fetched | None
    """Where ``got`` is an adapter: the model that it goes on."""
    code: bool = False
    """Whether that model's own code may run: where it is the job's own."""

    @property
    def model(self) -> Fetched:
        """The whole model of it."""
        return self.base or self.got

    @property
    def tokenizer(self) -> Path:
        """Folder that has its tokenizer."""
        own = any((self.got.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
        return self.got.path if own or self.base is None else self.base.path


def fetch_others(job: ResolvedJob, fetched: Callable[[str], Fetched]) -> list[Other]:
    """Those that the job names, with their bases."""
    found = []
    uses: tuple[Use, ...] = ("reference", "rewardModel")
    for use in uses:
        uri = source_of(job, use)
        if uri is None:
            continue
        got = fetched(uri)
        field = f"{job.stage}.{use}"
        base = fetched(_base_of(job, use, got, field)) if model_folder.is_adapter(got.path) else None
        code = model_folder.may_run_code(job) and (base or got).uri == job.model.source
        found.append(Other(use, field, got, base, code))
    return found


def _base_of(job: ResolvedJob, use: Use, got: Fetched, field: str) -> str:
    """The source of the model that an adapter goes on: as its job says, or as its own config does."""
    said = next((one.artifact.base for one in job.references if one.use == use), None)
    if said is not None:
        return said
    name = str(model_folder.check_adapter(got.path, got.uri, field).get("base_model_name_or_path") or "")
    if name.startswith(("pvc://", "hf://", "s3://")):
        return name
    if isinstance(parse(got.uri), HubPath) and re.match(
        HF_REPOSITORY, f"hf://{name}"
    ):  # as everybody's adapters there say it
        return f"hf://{name}"
    raise InvalidSpec(
        f"{field}: {got.uri} is an adapter, and its {model_folder.ADAPTER_CONFIG} says that it goes on {name!r}, which"
        " is no source: write the base model's (pvc://, hf:// or s3://) there as base_model_name_or_path, or merge the"
        " adapter into it"
    )


def check(job: ResolvedJob, other: Other, tokens: Any) -> None:
    """It can be loaded as what it is for, and its tokens are the job's. A reference may do without those that the job
    adds, as the model has that the job began with. Raises InvalidSpec, NotFound."""
    from finetune_trainer.model import base, weights  # torch
    from finetune_trainer.reporting.quiet import quiet

    quiet()
    scores = other.use == "rewardModel"
    kind: base.Kind = "reward" if scores else "causal"
    folder, source, field = other.got.path, other.got.uri, other.field
    model = other.model
    if other.base is not None:
        config = model_folder.check_adapter(folder, source, field)
        if model_folder.scores(config) != scores:
            raise InvalidSpec(f"{field}: {source} is an adapter of {_kind(not scores)}: name one of {_kind(scores)}")
        brought = weights.of_adapter(folder, source, field)
        if scores and not any(name.endswith("score.weight") for name in brought):
            raise InvalidSpec(f"{field}: {source} has no weights of a head that scores: name what stage rm made")
    else:
        _check_architecture(folder, source, field, scores)
    config = base.check(model.path, model.uri, allow_remote_code=other.code, kind=kind, field=field)
    weights.check_model(config, weights.of_model(model.path, model.uri, field), model.uri, kind=kind, field=field)
    added = [*(job.model.new_tokens or []), *(job.model.new_special_tokens or [])]
    theirs = _tokenizer(other, field)
    tokenizers.check_same(tokens, theirs, source, field, besides=() if scores else added)


def _tokenizer(other: Other, field: str) -> Any:
    from finetune_trainer.model import tokenizer

    settings = ModelSettings(trust_remote_code=other.code)
    try:
        return tokenizer.load(other.tokenizer, settings, allow_remote_code=other.code)
    except InvalidSpec as error:
        raise InvalidSpec(str(error).replace("model.source: its", f"{field}: {other.got.uri}: its", 1)) from error


def _check_architecture(folder: Path, source: str, field: str, scores: bool) -> None:
    """A language model would get a head of random numbers without a word."""
    from finetune_trainer.model import weights

    model_folder.check(folder, source, field)
    made_as = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    if scores and not made_as[0].endswith("ForSequenceClassification"):
        raise InvalidSpec(
            f"{field}: {source} is a {made_as[0] or 'model of unknown kind'}, which gives no scores: name what stage rm"
            " made, or a sequence classification model with one label"
        )
    if scores and "score.weight" not in weights.of_model(folder, source, field):
        raise NotFound(f"{field}: {source} has no weights of a head that scores (score.weight): copy it again")


def _kind(scores: bool) -> str:
    return "a reward model" if scores else "a language model"
