"""`finetune report`: what preparing wrote about the data, and the points of a metric from the whole log."""

import json

from finetune_cli import jobs
from finetune_cli.cluster.client import Client, Object
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace.pod import Need
from finetune_cli.workspace.session import Missing, opened

SECONDS = 3600
FILES = {"text": "prepare.md", "json": "prepare.json", "rows": "invalid-rows.jsonl"}
LOG = "trainer_log.jsonl"


def data_report(client: Client, job: Object, form: str, queue: str | None, timeout: float) -> str:
    """The report of a job's data: as text for people, as JSON, or its broken rows. Raises Problem if it does not
    exist."""
    name = job["metadata"]["name"]
    try:
        return _content(client, job, FILES[form], queue, timeout)
    except Missing as problem:
        if form == "rows":
            raise Problem(f"{name} has no broken rows.", Exit.NOT_FOUND) from problem
        raise Problem(
            f"{name} has no report yet: it is {jobs.phase(job)}. The report is written when all rows were read.",
            Exit.NOT_FOUND,
        ) from problem


def _content(client: Client, job: Object, file: str, queue: str | None, timeout: float) -> str:
    with (
        opened(client, job, Need(SECONDS, queue=queue), timeout) as reader,
        reader.read("send", f"jobs/{job['metadata']['name']}/reports/{file}") as command,
    ):
        return b"".join(command.output()).decode(errors="replace")


def full_curve(client: Client, job: Object, metric: str, queue: str | None, timeout: float) -> list[tuple[int, float]]:
    """Every logged point of a metric. Raises Problem if the log does not have it."""
    with (
        opened(client, job, Need(SECONDS, queue=queue), timeout) as reader,
        reader.read("curve", f"jobs/{job['metadata']['name']}/reports/{LOG}", "--metric", metric) as command,
    ):
        return [(step, value) for step, value in map(json.loads, command.lines())]
