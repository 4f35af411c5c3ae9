"""FineTuneJobs in files: read, checked against the API's own models without a cluster, and sent."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_cli import paths
from finetune_cli.problem import Exit, Problem

if TYPE_CHECKING:
    from finetune_cli.cluster.client import Client, Object

KIND = "FineTuneJob"

SOURCES = (
    "a source is hf://org/name, pvc://claim/path or s3://bucket/path, and for data also configmap://name/file. Copy"
    " files of this machine to one of these first (docs/your-data.md)"
)


def read(path: str) -> list[dict[str, Any]]:
    """The documents of a YAML or JSON file, or of the standard input (-)."""
    import yaml

    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise Problem(f"{path} is not YAML: {error}") from error
    if not documents or not all(isinstance(each, dict) for each in documents):
        raise Problem(f"{path} has no FineTuneJob. `finetune new sft` prints one to start from.")
    return [each for outer in documents for each in (outer["items"] if outer.get("kind") == "List" else [outer])]


def jobs_of(path: str) -> list[dict[str, Any]]:
    """The FineTuneJobs of a file, which may have other objects beside them."""
    found = [each for each in read(path) if each.get("kind") == KIND]
    if not found:
        raise Problem(f"{path} has no FineTuneJob. `finetune new sft` prints one to start from.")
    return found


def mistakes(job: Mapping[str, Any]) -> list[str]:
    """What the API's models refuse, a line each. What depends on the model, the data or the cluster is unknown here."""
    from finetune_api.contract import resolve
    from finetune_api.job import FineTuneJob
    from pydantic import ValidationError

    bare = {key: value for key, value in job.items() if key != "status"}
    try:
        parsed = FineTuneJob.model_validate(bare, by_alias=True, by_name=False)
    except ValidationError as error:
        return [_explained(dict(each)) for each in error.errors(include_url=False)]
    from finetune_api.chaining import from_jobs

    if not from_jobs(parsed.spec):
        try:
            resolve(parsed, allow_cpu=True, allow_remote_code=True)
        except ValueError as error:
            return [f"spec.{error}"]
    return []


def check(job: Mapping[str, Any], where: str) -> None:
    """Raises Problem with every mistake of the job."""
    if found := mistakes(job):
        raise Problem(f"{where} is not valid:\n" + "\n".join(f"  {each}" for each in found))


def create(client: "Client", job: "Object", dry_run: bool = False) -> "Object":
    """POST the job; the API server refuses unknown fields."""
    namespace = job["metadata"].get("namespace") or client.namespace
    return client.call("POST", paths.jobs(namespace), job, fieldValidation="Strict", dryRun="All" if dry_run else None)


def set_field(job: dict[str, Any], path: str, value: Any) -> None:
    """Set a field by its path below spec, such as training.warmupRatio."""
    *outer, last = path.removeprefix("spec.").split(".")
    here = job["spec"]
    for part in outer:
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            raise Problem(f"--set {path}: {part} is no section. Write the job into a file, and use -f.")
    here[last] = value


def _explained(error: dict[str, Any]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    kind = error["type"]
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "extra_forbidden":
        from finetune_api import foreign_names

        field = foreign_names.use_instead(error["loc"])
        return f"{path}: unknown field" + (
            f"; use {field}" if field else "; `kubectl explain ftj.spec` lists the fields"
        )
    if kind == "value_error":
        return f"{path or 'spec'}: {error.get('ctx', {}).get('error', error['msg'])}"
    given = json.dumps(error["input"], ensure_ascii=False, default=str)
    given = given if len(given) <= 80 else given[:77] + "..."
    if kind == "string_pattern_mismatch" and error["loc"][-1] == "source":
        return f"{path}: {given} given; {SOURCES}"
    return f"{path}: {given} given; {error['msg'].replace('Input should be', 'must be').replace('should', 'must')}"


def exit_of(problems: int) -> Exit:
    """The exit code of a check."""
    return Exit.FAILED if problems else Exit.DONE
