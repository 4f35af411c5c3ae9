"""FILE of ``--job``, and the attempt's facts beside it.

FILE is either what the operator mounts (a `ResolvedJob` as JSON, its contract version checked first) or what a user
wrote (a FineTuneJob as YAML, resolved here by the same function that the operator uses, with what other jobs have made
in the workspace). Whatever is wrong with it is said in the words of the file: the path in camelCase, what was given,
what is allowed.
"""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from finetune_api.base import ApiModel
from finetune_api.contract import ATTEMPT_FILE, CONTRACTS_ACCEPTED, AttemptFacts, ResolvedJob, resolve
from finetune_api.job import KIND, FineTuneJob
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune_trainer import chained, director
from finetune_trainer.errors import InvalidSpec

ERRORS_SHOWN = 8

Model = TypeVar("Model", bound=ApiModel)


def read_job(file: Path, workspace: Path, *, allow_remote_code: bool = False) -> ResolvedJob:
    """The job that FILE describes. Raises InvalidSpec, and the errors of `chained.references`. Whether a model's own
    code may run is said by the operator in a resolved job, and by the command line for a FineTuneJob."""
    document = _job_document(file)
    if "kind" not in document:
        _check_contract(file, document.get("contract"))
        return _validate(ResolvedJob, document, file)
    job = _validate(FineTuneJob, document, file)
    references = chained.references(job, workspace)
    try:
        return resolve(job, references=references, allow_remote_code=allow_remote_code)
    except ValueError as error:
        raise InvalidSpec(f"{file}: spec.{error}") from error


def read_attempt(job_file: Path) -> AttemptFacts | None:
    """The attempt's facts, mounted beside the job; None on a laptop, where there is no such file."""
    file = job_file.parent / Path(ATTEMPT_FILE).name
    if not file.exists():
        return None
    return _validate(AttemptFacts, _one_document(file), file)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"--job {file}: cannot be read: {error}") from error


def _one_document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"{file}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidSpec(f"{file}: holds a {type(document).__name__}, not an object")
    return document


def _job_document(file: Path) -> dict[str, Any]:
    """The one job in FILE. A manifest may hold other objects beside it, as `kubectl apply` allows."""
    if file.suffix == ".json":
        return _one_document(file)
    try:
        documents = [document for document in yaml.safe_load_all(_read(file)) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{file}: not YAML: {error}") from error
    jobs = [d for d in documents if isinstance(d, dict) and (d.get("kind") == KIND or "contract" in d)]
    if len(jobs) != 1:
        kinds = [str(d.get("kind") if isinstance(d, dict) else type(d).__name__) for d in documents]
        found = ", ".join(kinds) or "nothing"
        raise InvalidSpec(f"{file}: holds {len(jobs)} {KIND}s (found: {found}); the trainer runs exactly one")
    return jobs[0]


def _check_contract(file: Path, asked: Any) -> None:
    if asked in CONTRACTS_ACCEPTED and not isinstance(asked, bool):
        return
    if asked is None:
        raise InvalidSpec(f"{file}: neither a {KIND} (no kind) nor a resolved job (no contract)")
    known = "-".join(str(v) for v in sorted({min(CONTRACTS_ACCEPTED), max(CONTRACTS_ACCEPTED)}))
    raise InvalidSpec(
        f"{file}: contract {asked} asked, this image knows {known}: use the trainer image of the operator's release"
        " (spec.resources.image, or the chart's default)"
    )


def _validate(model: type[Model], document: dict[str, Any], file: Path) -> Model:
    try:
        # by_name=False: only the names that kubectl accepts.
        return model.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        found = [_explain(model, details) for details in error.errors(include_url=False)]
        more = f"\n  and {len(found) - ERRORS_SHOWN} more" if len(found) > ERRORS_SHOWN else ""
        raise InvalidSpec(f"{file}: " + "\n  ".join(found[:ERRORS_SHOWN]) + more) from None


def _explain(model: type[BaseModel], error: ErrorDetails) -> str:
    """One finding of pydantic for people."""
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "extra_forbidden":
        return f"{path}: unknown field{_suggest(str(location[-1]), _fields(model, location[:-1]))}"
    if kind == "value_error":
        return f"{path}: {context.get('error', error['msg'])}"
    if location and location[-1] == "stage":
        return f"{path}: {director.unknown_stage(str(error['input']))}"
    given = f"{path}: {_shown(error['input'])} given"
    if kind == "literal_error":
        return f"{given}; allowed: {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{given}; must match {context['pattern']}"
    return f"{given}; {error['msg'].replace('Input should be', 'must be').replace('should', 'must')}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _suggest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _fields(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Names of the fields that may stand at this place."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = next((f.annotation for n, f in model.model_fields.items() if part in (f.alias, n)), None)
        inner = _model_in(annotation)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside ``Model | None`` or ``list[Model]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
