"""From the name of a stage to its workflow: one package per stage, imported only when a job of that stage runs.

A stage exists if ``stages/<stage>/workflow.py`` exists: nothing needs to be registered.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.run import Run, WorkflowResult

STAGES = ("pt", "sft", "rm", "dpo", "ppo", "kto")

Workflow = Callable[[Run], WorkflowResult]


def available() -> list[str]:
    """The stages that this image has."""
    folder = Path(__file__).parent / "stages"
    return [stage for stage in STAGES if (folder / stage / "workflow.py").is_file()]


def unknown_stage(stage: str) -> str:
    """The message for a stage that does not exist."""
    return f"Unknown stage {stage!r}: the stages are {', '.join(STAGES)}; this image has {', '.join(available())}"


def find_workflow(stage: str) -> Workflow:
    """The workflow of a stage. Raises InvalidSpec."""
    if stage not in available():
        raise InvalidSpec(unknown_stage(stage))
    workflow: Workflow = import_module(f"finetune_trainer.stages.{stage}.workflow").run
    return workflow
