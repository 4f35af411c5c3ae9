"""Tables and pages for people."""

from typing import Any

from finetune_cli import clock, estimates, jobs, timeline
from finetune_cli.cluster.client import Client, Object
from finetune_cli.doctor import Finding
from finetune_cli.output import Format, paint, phase, table, to_yaml, warn

HEADER = ("NAME", "STAGE", "MODEL", "PHASE", "PROGRESS", "LOSS", "ETA", "AGE", "REASON")
MARKS = {"ok": ("green", "ok     "), "note": ("yellow", "note   "), "problem": ("red", "problem")}


def show_list(found: list[Object], everywhere: bool = False) -> None:
    """A row per job. The queues have a column if a job is in one."""
    if not found:
        warn("No jobs found.")
        return
    at = clock.now()
    rows = [[*([job["metadata"]["namespace"]] if everywhere else []), *_row(job, at)] for job in found]
    header = [*(["NAMESPACE"] if everywhere else []), *HEADER]
    if any(queues := [jobs.queue(job) for job in found]):
        header.append("QUEUE")
        rows = [[*row, queue] for row, queue in zip(rows, queues, strict=True)]
    table(header, rows, phase_column=3 + everywhere)


def _row(job: Object, at: Any) -> list[str]:
    spec, status = job["spec"], jobs.status(job)
    progress = status.get("progress") or {}
    reason = status.get("reason") or ""
    return [
        job["metadata"]["name"],
        spec["stage"],
        spec["model"].get("source") or f"job {spec['model'].get('fromJob')}",
        jobs.phase(job),
        progress.get("summary") or "",
        progress.get("loss") or "",
        progress.get("eta") or "",
        clock.age(job, at),
        reason if reason != jobs.phase(job) else "",
    ]


def show_job(client: Client, job: Object) -> None:
    """The facts of a job, and what happened to it."""
    at = clock.now()
    for name, value in timeline.facts(job, at):
        print(f"{name + ':':12} {phase(value) if name == 'Phase' else value}")
    happened = timeline.events(client, job["metadata"]["name"], job["metadata"]["uid"])
    print("\nTimeline:")
    for entry in timeline.timeline(job, happened):
        print(f"  {paint(entry.time, 'dim')}  {entry.what}" + (f"\n{'':24}{entry.message}" if entry.message else ""))


def show_finding(finding: Finding) -> None:
    """A line of the doctor."""
    colour, mark = MARKS[finding.level]
    print(f"{paint(mark, colour)}  {finding.check}: {finding.text}")


def show_data(value: Any, form: Format) -> None:
    """Data that is no Kubernetes object."""
    import json

    print(to_yaml(value) if form is Format.YAML else json.dumps(value, indent=2, ensure_ascii=False))


def show_comparison(names: list[str], parts: dict[str, list[list[str]]]) -> None:
    """The parts, a column for each job."""
    for number, (part, rows) in enumerate(parts.items()):
        print(("\n" if number else "") + f"{part}:")
        if rows:
            table(["", *names], rows)
        else:
            print("  no differences")


def show_estimate(job: Object, found: list[dict[str, Any]]) -> None:
    """A row for each method, a column for each number of GPUs."""
    numbers, rows = estimates.table(found)
    length = estimates.length_of(job)
    print(f"Memory of each GPU in GiB, with a micro-batch of one row of {length} tokens and all layers recomputed:")
    header = ["METHOD", *(f"{number} GPU{'S'[: number != 1]}" for number in numbers)]
    table(header, rows)
    print("Several GPUs share the model (parallelism fsdp), but for qlora. docs/models.md explains the terms.")
