"""Sends jobs, prints them, and watches them."""

from typing import Any

import typer

from finetune_cli import manifest, watching
from finetune_cli.cluster.client import Client
from finetune_cli.output import Format, document, listing, to_yaml, warn


def from_file(path: str) -> list[dict[str, Any]]:
    """The FineTuneJobs of a file, or the job that a configuration of LLaMA-Factory means."""
    documents = manifest.read(path)
    found = [each for each in documents if each.get("kind") == manifest.KIND]
    if not found and len(documents) == 1 and "kind" not in documents[0]:
        from finetune_cli.importing import llamafactory

        imported = llamafactory.convert(documents[0])
        for note in imported.notes:
            warn(str(note))
        return [imported.job]
    return found or manifest.jobs_of(path)


def submit(client: Client | None, found: list[dict[str, Any]], form: Format | None, watch: bool) -> None:
    """Create the jobs; without a client, print them as YAML."""
    if client is None:
        for number, job in enumerate(found):
            if form is Format.JSON:
                document(job, form)
            else:
                print(("---\n" if number else "") + to_yaml(job), end="")
        return
    created = [manifest.create(client, job) for job in found]
    if form:
        document(created[0] if len(created) == 1 else listing(created), form)
    else:
        for job in created:
            name = job["metadata"]["name"]
            print(f"finetunejob/{name} created. `finetune watch {name}` shows its progress.")
    if watch:
        codes = [watching.one(client, job["metadata"]["name"]) for job in created]
        raise typer.Exit(max(codes))
