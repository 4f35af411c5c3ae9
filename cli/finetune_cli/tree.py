"""Chains of jobs: which jobs start from the results of which."""

from collections import defaultdict
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
    after = users(named)
    found, waiting = set(), [name]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += [*before.get(each, ()), *(other for other, _ in after[each])]
    return [job for job in all_jobs if job["metadata"]["name"] in found]


def users(named: dict[str, Any]) -> defaultdict[str, list[tuple[str, str]]]:
    """Name -> (job that uses its artifact, use)."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for other, job in named.items():
        for use, need in needs(job).items():
            found[need].append((other, use))
    return found


def draw(all_jobs: list[dict[str, Any]]) -> list[str]:
    """A line per job: under each job those that use its artifact. A job that uses several stands under each of them,
    with its own followers under the first only."""
    named = {job["metadata"]["name"]: job for job in all_jobs}
    missing = sorted({name for job in all_jobs for name in needs(job).values()} - set(named))
    roots = [*missing, *(name for name, job in named.items() if not needs(job))]
    drawing = _Drawing(named)
    for name in roots:
        drawing.below(name)
    for name in named:  # jobs that wait for each other in a circle
        if name not in drawing.shown:
            drawing.below(name)
    return drawing.lines


class _Drawing:
    def __init__(self, named: dict[str, Any]) -> None:
        self._named = named
        self._users = users(named)
        self.lines: list[str] = []
        self.shown: set[str] = set()

    def below(self, name: str, head: str = "", inside: str = "", use: str = "") -> None:
        """The line of a job, and under it those of the jobs that use its artifact."""
        job = self._named.get(name)
        first = name not in self.shown
        self.shown.add(name)
        what = _label(job) if job else "(does not exist)"
        end = (f"  uses it as {use}" if use else "") + ("" if first else "  (see above)")
        self.lines.append(f"{head}{name}  {what}{end}")
        if not first:
            return
        followers = self._users[name]
        for number, (other, each) in enumerate(followers, start=1):
            branch, deeper = ("└─ ", "   ") if number == len(followers) else ("├─ ", "│  ")
            self.below(other, inside + branch, inside + deeper, each)


def _label(job: dict[str, Any]) -> str:
    progress = jobs.status(job).get("progress") or {}
    parts = [
        job["spec"]["stage"],
        coloured(jobs.phase(job)),
        progress.get("summary") if jobs.phase(job) == "Running" else "",
    ]
    return "  ".join(part for part in parts if part)
