"""From a stage's name to its workflow: one package per stage, imported only when its job runs.

A stage is there when ``stages/<stage>/workflow.py`` is: nothing needs to be registered.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.run import Outcome, Run

STAGES = ("pt", "sft", "rm", "dpo", "ppo", "kto")

Workflow = Callable[[Run], Outcome]


def available() -> list[str]:
    """The stages that this image has."""
    folder = Path(__file__).parent / "stages"
    return [stage for stage in STAGES if (folder / stage / "workflow.py").is_file()]


def unknown_stage(stage: str) -> str:
    """What to tell who asked for a stage that isn't there."""
    return f"Unknown stage {stage!r}: the stages are {', '.join(STAGES)}; this image has {', '.join(available())}"


def find_workflow(stage: str) -> Workflow:
    """The stage's workflow. Raises InvalidSpec."""
    if stage not in available():
        raise InvalidSpec(unknown_stage(stage))
    workflow: Workflow = import_module(f"finetune_trainer.stages.{stage}.workflow").run
    return workflow
