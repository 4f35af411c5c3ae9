"""A job as the SDK returns it: typed by the API's own models, and drawn in notebooks."""

import html
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune_cli import chart, jobs, plots
from finetune_cli.problem import Problem
from finetune_cli.progress import bar

from finetune import drawing

if TYPE_CHECKING:
    from finetune_api.spec import FineTuneJobSpec
    from finetune_api.status.job_status import FineTuneJobStatus

COMPLETE = "Complete"
"""Kubeflow's name for Succeeded."""


class Event(NamedTuple):
    """Something that Kubernetes reports about a job."""

    time: str
    reason: str
    message: str


class Job:
    """A FineTuneJob. `object` is the whole object as the API server has it."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.object = found
        self.name: str = found["metadata"]["name"]

    @property
    def spec(self) -> "FineTuneJobSpec":
        """What to train."""
        from finetune_api.spec import FineTuneJobSpec

        return FineTuneJobSpec.read(self.object["spec"])

    @property
    def details(self) -> "FineTuneJobStatus":
        """The whole status."""
        from finetune_api.status.job_status import FineTuneJobStatus

        return FineTuneJobStatus.read(self.object.get("status") or {})

    @property
    def status(self) -> str:
        """The phase: Pending, Preparing, Queued, Starting, Running, Suspended, Succeeded or Failed."""
        return jobs.phase(self.object)

    @property
    def ended(self) -> bool:
        """Whether it has succeeded or failed."""
        return jobs.ended(self.object)

    @property
    def message(self) -> str:
        """What happened, why, and what to do."""
        status = jobs.status(self.object)
        return ": ".join(part for part in (status.get("reason"), status.get("message")) if part)

    @property
    def metrics(self) -> dict[str, float]:
        """The final metrics. Empty before the job has succeeded."""
        return {name: float(value) for name, value in (jobs.status(self.object).get("metrics") or {}).items()}

    @property
    def curves(self) -> dict[str, list[chart.Point]]:
        """Metric, such as loss -> its (step, value), at most 256. Empty before there are any."""
        try:
            return plots.curves_of(self.object)
        except Problem:
            return {}

    @property
    def artifact(self) -> str | None:
        """URI of the result."""
        return (jobs.status(self.object).get("artifact") or {}).get("uri")

    def is_in(self, statuses: set[str]) -> bool:
        """Whether it is in one of these states, by our names or Kubeflow's."""
        return self.status in statuses or (self.status == "Succeeded" and COMPLETE in statuses)

    def __repr__(self) -> str:
        progress = (jobs.status(self.object).get("progress") or {}).get("summary")
        return f"<Job {self.name}: {', '.join(part for part in (self.status, progress, self.message) if part)}>"

    def _repr_html_(self) -> str:
        progress = jobs.status(self.object).get("progress") or {}
        parts = [f"<b>{html.escape(self.name)}</b>", html.escape(self.status)]
        if progress.get("summary"):
            parts.append(f"<code>{bar(progress['percent'])}</code> {html.escape(progress['summary'])}")
        shown = (("loss", "loss"),) if self.ended else (("loss", "loss"), ("ETA", "eta"))
        parts += [f"{name} {html.escape(progress[key])}" for name, key in shown if progress.get(key)]
        if not progress and self.message:
            parts.append(html.escape(self.message))
        return "<div>" + " &nbsp; ".join(parts) + drawing.svg(self.curves.get(plots.LOSS, ()), plots.LOSS) + "</div>"
