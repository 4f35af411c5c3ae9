"""The settings of a stage as flat names and values, for trackers and the model card."""

from finetune_api.contract import ResolvedJob


def stage_settings(job: ResolvedJob) -> dict[str, str | int | float | bool]:
    """The scalar settings of the stage's own section, under the names of the spec."""
    section = job.rm or job.dpo or job.kto or job.ppo
    values = section.to_dict() if section else {}
    return {f"{job.stage}.{name}": value for name, value in values.items() if isinstance(value, str | int | float)}
