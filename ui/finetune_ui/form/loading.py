"""Jobs that the form starts from: a new job, YAML, a configuration of LLaMA-Factory, or another job."""

from typing import Any

from finetune_api.job import API_VERSION, KIND
from finetune_cli.importing import llamafactory
from finetune_cli.importing.notes import Imported
from finetune_cli.problem import Problem
from finetune_cli.starter import filled

from finetune_ui import texts
from finetune_ui.form import plain

SERVER_METADATA = (
    *("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generation"),
    *("managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid"),
)
"""What the API server, and controllers, write into metadata."""
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
OF_THE_RUN = ("retry", "stop", "suspend")
"""Fields of the spec that say what happens to a job, and not how it trains."""


def new(stage: str = "sft") -> dict[str, Any]:
    """The smallest job of a stage, without a name. An unknown stage counts as sft."""
    job = filled(stage if stage in llamafactory.STAGES else "sft", "")
    del job["metadata"]
    return job


def load(text: str) -> dict[str, Any]:
    """The FineTuneJob of a YAML text, without its status. Raises Problem with a message for the user: the text is too
    large, is not YAML, has a key twice, has several documents, or is another object."""
    job = plain.document(text)
    if job is None:
        raise Problem(texts.text("form.nothing"))
    if not isinstance(job, dict):
        raise Problem(texts.text("form.no_mapping"))
    if (job.get("apiVersion"), job.get("kind")) != (API_VERSION, KIND):
        kind = " ".join(str(job.get(key) or "?")[:60] for key in ("kind", "apiVersion"))
        raise Problem(texts.text("form.other_kind", kind=kind, version=API_VERSION))
    return _without_server_fields(job)


def save(job: dict[str, Any]) -> str:
    """The YAML of a job."""
    return plain.written(job)


def clone(job: dict[str, Any]) -> dict[str, Any]:
    """A job like another job, to create under another name: without name, status, and what happened to the other."""
    copy = _without_server_fields(job)
    if isinstance(copy.get("metadata"), dict):
        copy["metadata"] = {name: value for name, value in copy["metadata"].items() if name != "name"}
        if not copy["metadata"]:
            del copy["metadata"]
    if isinstance(copy.get("spec"), dict):
        copy["spec"] = {name: value for name, value in copy["spec"].items() if name not in OF_THE_RUN}
    return copy


def import_llamafactory(text: str) -> Imported:
    """The job that a configuration of LLaMA-Factory means, and notes on what is not simply kept. Data sets are those
    that come with LLaMA-Factory; nothing is read from the server's disk. Raises Problem with a message for the user."""
    configuration = plain.document(text)
    if configuration is None:
        raise Problem(texts.text("form.nothing"))
    if not isinstance(configuration, dict) or "kind" in configuration:
        raise Problem(
            texts.text("form.no_mapping")
            if not isinstance(configuration, dict)
            else texts.text("form.no_import", problem="kind")
        )
    try:
        imported = llamafactory.convert(configuration)
        plain.check(imported.job)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # The importer expects values as LLaMA-Factory accepts them: learning_rate: [1] is none.
        raise Problem(texts.text("form.no_import", problem=error)) from error
    return imported


def _without_server_fields(job: dict[str, Any]) -> dict[str, Any]:
    copy = {name: value for name, value in job.items() if name != "status"}
    metadata = copy.get("metadata")
    if isinstance(metadata, dict):
        kept = {name: value for name, value in metadata.items() if name not in SERVER_METADATA}
        notes = kept.get("annotations")
        if isinstance(notes, dict):
            kept["annotations"] = {name: value for name, value in notes.items() if name != LAST_APPLIED}
        copy["metadata"] = {name: value for name, value in kept.items() if value not in ({}, None)}
    return copy
