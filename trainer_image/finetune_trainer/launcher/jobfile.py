"""Reads FILE of ``--job``, and the attempt's facts beside it.

FILE is what the operator mounts (a `ResolvedJob` as JSON, its contract version checked first), or an artifact's
provenance.json, which has that document, or what a user wrote (a FineTuneJob as YAML, resolved here by the operator's
function, with the artifacts of other jobs in the workspace). An error names the path in camelCase as in the file, the
value that was given, and what is allowed.
"""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from finetune_api import foreign_names, strict_yaml
from finetune_api.base import ApiModel
from finetune_api.contract import ATTEMPT_FILE, CONTRACTS_ACCEPTED, AttemptFacts, ResolvedJob, resolve
from finetune_api.job import API_VERSION, KIND, FineTuneJob
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune_trainer import director
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.launcher import local_references

ERRORS_SHOWN = 8
PROVENANCE = "provenance.json"
OTHER_TRAINERS = {
    "LLaMA-Factory": {"finetuning_type", "cutoff_len", "dataset_dir", "template", "do_train", "lora_target"},
    "Axolotl": {"base_model", "micro_batch_size", "sequence_len", "val_set_size"},
    "TRL": {"dataset_name", "dataset_text_field", "use_peft", "lora_r"},
}
"""Trainers whose configuration is a flat YAML -> keys that no other of them has."""

Model = TypeVar("Model", bound=ApiModel)


def read_job(file: Path, workspace: Path, *, allow_remote_code: bool = False) -> ResolvedJob:
    """The job in FILE. Raises InvalidSpec, and the errors of `local_references`. A resolved job says whether a model's
    own code may run; for a FineTuneJob ``allow_remote_code`` does, from the command line."""
    document = _job_document(file)
    if "kind" not in document:
        _check_contract(file, document.get("contract"))
        return _validate(ResolvedJob, document, file)
    job = _validate(FineTuneJob, document, file)
    references = local_references.read_references(job, workspace)
    try:
        return resolve(job, references=references, allow_remote_code=allow_remote_code)
    except ValueError as error:
        raise InvalidSpec(f"{file}: spec.{error}") from error


def read_attempt(job_file: Path) -> AttemptFacts | None:
    """The attempt's facts, mounted beside the job; None on a laptop, which has no such file."""
    file = job_file.parent / Path(ATTEMPT_FILE).name
    if not file.exists():
        return None
    return _validate(AttemptFacts, _json_object(file), file)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"--job {file}: cannot be read: {error}") from error


def _json_object(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"{file}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidSpec(f"{file}: has a {type(document).__name__}; must be an object")
    return document


def _job_document(file: Path) -> dict[str, Any]:
    """The single job in FILE. A manifest may have other objects beside it, as `kubectl apply` allows."""
    if file.suffix == ".json":
        document = _json_object(file)
        inside = document.get("job")
        return inside if file.name == PROVENANCE and isinstance(inside, dict) else document
    try:
        documents = [document for document in strict_yaml.load_all(_read_text(file)) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{file}: not YAML: {error}") from error
    jobs = [d for d in documents if isinstance(d, dict) and (d.get("kind") == KIND or "contract" in d)]
    if not jobs and len(documents) == 1 and isinstance(documents[0], dict) and "kind" not in documents[0]:
        raise InvalidSpec(f"{file}: {_other_file(documents[0])}")
    if len(jobs) != 1:
        kinds = [str(d.get("kind") if isinstance(d, dict) else type(d).__name__) for d in documents]
        found = ", ".join(kinds) or "no objects"
        raise InvalidSpec(f"{file}: has {len(jobs)} {KIND}s (found: {found}); the trainer runs exactly one")
    return jobs[0]


def _other_file(document: dict[str, Any]) -> str:
    """What a file is that has no kind, and what to do."""
    head = f"a {KIND} has apiVersion: {API_VERSION}, kind: {KIND}, metadata and spec"
    if {"spec", "metadata"} & document.keys():
        return f"has no kind; {head}"
    fields = {str(key): foreign_names.use_instead(("spec", str(key))) for key in document}
    if document.keys() <= set(_fields(FineTuneJob, ["spec"])):
        return f"has the fields of a spec only; {head}: put these fields below spec, and name the job in metadata.name"
    found = [f"{key}: {field}" for key, field in fields.items() if field]
    if not found:
        return f"has no kind; {head} (found: {', '.join(list(fields)[:ERRORS_SHOWN])})"
    trainer = next((name for name, keys in OTHER_TRAINERS.items() if keys & document.keys()), "another trainer")
    return (
        f"this is a configuration of {trainer}, and not a {KIND}. {head}; docs/llamafactory.md has an example, and the"
        f" field for each argument. Fields for this file: {', '.join(found)}"
    )


def _check_contract(file: Path, contract: Any) -> None:
    if contract in CONTRACTS_ACCEPTED and not isinstance(contract, bool):
        return
    if contract is None:
        raise InvalidSpec(f"{file}: neither a {KIND} (no kind) nor a resolved job (no contract); must be one of them")
    accepted = "-".join(str(v) for v in sorted({min(CONTRACTS_ACCEPTED), max(CONTRACTS_ACCEPTED)}))
    raise InvalidSpec(
        f"{file}: contract {contract} given; this image accepts {accepted}. Use the trainer image of the operator's"
        " release (spec.resources.image, or the chart's default)"
    )


def _validate(model: type[Model], document: dict[str, Any], file: Path) -> Model:
    try:
        # by_name=False: only the names that kubectl accepts.
        return model.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        errors = [_explain(model, details) for details in error.errors(include_url=False)]
        more = f"\n  and {len(errors) - ERRORS_SHOWN} more" if len(errors) > ERRORS_SHOWN else ""
        raise InvalidSpec(f"{file}: " + "\n  ".join(errors[:ERRORS_SHOWN]) + more) from None


def _explain(model: type[BaseModel], error: ErrorDetails) -> str:
    """An error of pydantic, for people."""
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "extra_forbidden":
        field = foreign_names.use_instead(location)
        if field and model is FineTuneJob:
            return f"{path}: unknown field; use {field}"
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
    """Names of the fields that this location allows."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = next((f.annotation for n, f in model.model_fields.items() if part in (f.alias, n)), None)
        inner = foreign_names.model_in(annotation)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]
