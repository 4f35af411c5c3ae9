"""Chains of jobs: which jobs start from the results of which."""

from typing import Any

from finetune_cli import jobs
from finetune_cli.output import phase as coloured


def needs(job: dict[str, Any]) -> dict[str, str]:
    """Use -> the name of the job whose artifact is used."""
    spec = job["spec"]
    found = {"model": (spec.get("model") or {}).get("fromJob")}
    for section in ("dpo", "kto", "ppo"):
        reference = (spec.get(section) or {}).get("reference") or {}
        found["reference"] = found.get("reference") or reference.get("fromJob")
    found["reward model"] = ((spec.get("ppo") or {}).get("rewardModel") or {}).get("fromJob")
    return {use: name for use, name in found.items() if name}


def related(all_jobs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The job, and all jobs before and after it."""
    named = {job["metadata"]["name"]: job for job in all_jobs}
    before = {each: set(needs(job).values()) for each, job in named.items()}
    after = {each: {other for other in named if each in before[other]} for each in named}
    found, waiting = set(), [name]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += [*before.get(each, ()), *after.get(each, ())]
    return [job for job in all_jobs if job["metadata"]["name"] in found]


def draw(all_jobs: list[dict[str, Any]]) -> list[str]:
    """A line per job: under each job those that use its artifact. A job that uses several stands under each of them,
    with its own followers under the first only."""
    named = {job["metadata"]["name"]: job for job in all_jobs}
    missing = sorted({name for job in all_jobs for name in needs(job).values()} - set(named))
    roots = [*missing, *(name for name, job in named.items() if not needs(job))]
    lines: list[str] = []
    shown: set[str] = set()
    for name in roots:
        _below(named, name, "", "", "", lines, shown)
    for name in named:  # jobs that wait for each other in a circle
        if name not in shown:
            _below(named, name, "", "", "", lines, shown)
    return lines


def _below(
    named: dict[str, Any], name: str, head: str, inside: str, use: str, lines: list[str], shown: set[str]
) -> None:
    job = named.get(name)
    first = name not in shown
    shown.add(name)
    what = _label(job) if job else "(does not exist)"
    lines.append(f"{head}{name}  {what}" + (f"  uses it as {use}" if use else "") + ("" if first else "  (see above)"))
    if not first:
        return
    users = [
        (other, each) for other, other_job in named.items() for each, need in needs(other_job).items() if need == name
    ]
    for number, (other, each) in enumerate(users):
        last = number == len(users) - 1
        branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
        _below(named, other, inside + branch, inside + deeper, each, lines, shown)


def _label(job: dict[str, Any]) -> str:
    progress = jobs.status(job).get("progress") or {}
    parts = [
        job["spec"]["stage"],
        coloured(jobs.phase(job)),
        progress.get("summary") if jobs.phase(job) == "Running" else "",
    ]
    return "  ".join(part for part in parts if part)
