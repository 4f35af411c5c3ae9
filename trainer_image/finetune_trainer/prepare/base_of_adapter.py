"""The base model of an adapter that a job names as reference or reward model: the base that the job names, or the job's
own model.

The config of an adapter says what its base is, by a source, a repository of a hub, or a path on the machine where
another program trained it. It may come from anybody, and the job's credentials fetch what is named, so a name alone
never makes the job fetch a model. A path can only mean the job's own model, and only if all that can be compared
agrees: the name of its folder, and the shapes of the layers that the adapter changes.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from finetune_api.contract import ResolvedJob, base_of, source_of
from finetune_api.source import HF_REPOSITORY, HubPath, parse

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.fetch import Fetched
from finetune_trainer.model import model_files, weight_shapes
from finetune_trainer.workspace.files import parse_object

PROVENANCE = "provenance.json"
CACHED = re.compile(r"(?:^|/)models--(?P<org>[^/]+?)--(?P<name>[^/]+)(?:/|$)")
"""A model in the cache of huggingface_hub."""

Use = Literal["reference", "rewardModel"]

log = logging.getLogger(__name__)


def uri(
    job: ResolvedJob,
    use: Use,
    adapter: Fetched,
    field: str,
    fetch_model: Callable[[str], Fetched],
) -> str:
    """The source of the base model. Raises InvalidSpec, and what ``fetch_model`` raises."""
    if (named := base_of(job, use)) is not None:
        return named
    config = model_files.check_adapter(adapter.path, adapter.uri, field)
    name = str(config.get("base_model_name_or_path") or "")
    is_source = name.startswith(("pvc://", "hf://", "s3://"))
    source = name if is_source else _of_artifact(adapter.path, name) or _on_hub(adapter, name, config)
    if source in _named(job):
        return source
    if source is not None:
        if not _same_repository(source, job.model.source):
            raise InvalidSpec(
                f"{field}: {adapter.uri} is an adapter of {source} by its {model_files.ADAPTER_CONFIG}, and the job"
                f" does not name this model. If you trust it, write it into the job: set {field}.base to {source}"
            )
        name = job.model.source.removeprefix("hf://").partition("@")[0]
    objection = _differs_from_own(job.model.source, name, adapter, field, fetch_model)
    if not objection:
        log.info(
            "%s: the base model %r of %s is taken to be the job's own model, %s: its name and the shapes of the"
            " adapted layers agree",
            *(field, name, adapter.uri, job.model.source),
        )
        return job.model.source
    raise InvalidSpec(
        f"{field}: {adapter.uri} is an adapter, and its {model_files.ADAPTER_CONFIG} names the base model {name!r},"
        f" which is no source that the job names, and not the job's own model: {objection}. Set {field}.base to the"
        " source of the base model (pvc://, hf:// or s3://), or merge the adapter into it"
    )


def _named(job: ResolvedJob) -> set[str]:
    """The models that the job names."""
    uses: tuple[Use, ...] = ("reference", "rewardModel")
    others = [find(job, use) for use in uses for find in (source_of, base_of)]
    return {job.model.source, *(source for source in others if source is not None)}


def _same_repository(source: str, own: str) -> bool:
    """Whether both are the same model of a hub, by its name: the adapter may name a commit, and the job a branch."""
    here, there = parse(source), parse(own)
    return isinstance(here, HubPath) and isinstance(there, HubPath) and here.repository == there.repository


def _of_artifact(folder: Path, name: str) -> str | None:
    """The source in the provenance of an artifact of ours, whose config names the repository."""
    try:
        source = parse_object((folder / PROVENANCE).read_bytes())["job"]["model"]["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_hub = isinstance(source, str) and re.match(HF_REPOSITORY, source)
    place = parse(source) if is_hub else None
    return source if isinstance(place, HubPath) and place.repository == name else None


def _on_hub(adapter: Fetched, name: str, config: Mapping[str, Any]) -> str | None:
    """Adapters on a hub name their base model by its repository, and so do artifacts of ours, with a revision."""
    revision = config.get("revision")
    source = f"hf://{name}@{revision}" if revision else f"hf://{name}"
    may_be = isinstance(parse(adapter.uri), HubPath) or revision
    return source if may_be and re.match(HF_REPOSITORY, source) else None


def _differs_from_own(own: str, name: str, adapter: Fetched, field: str, fetch_model: Callable[[str], Fetched]) -> str:
    """Why the name cannot mean the job's own model; empty if it can."""
    place = parse(own)
    ours = place.repository if isinstance(place, HubPath) else own
    cached = CACHED.search(name)
    theirs = f"{cached['org']}/{cached['name']}" if cached else name.replace("\\", "/")
    if PurePosixPath(theirs).name.lower() != PurePosixPath(ours).name.lower():
        return f"{own} has another name"
    model = fetch_model(own)
    if not weight_shapes.fit_model(
        weight_shapes.of_adapter(adapter.path, adapter.uri, field), weight_shapes.of_model(model.path, own)
    ):
        return f"the adapted layers have other shapes in {own}"
    return ""
