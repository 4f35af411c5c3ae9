"""Losses and gradient norms of each stage's first twenty steps are as recorded.

``tests/golden/losses`` has them, with the versions, threads and processor that they come from: another processor moves
losses by a millionth. To write them again, which a change has to justify::

    python -m pytest tests/trainer/training/test_golden.py --update-golden
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import stages, tiny

GOLDEN = Path(__file__).parents[2] / "golden" / "losses"
STEPS = 20
LOSS, GRAD_NORM = 1e-4, 1e-3
PACKAGES = ("accelerate", "numpy", "peft", "tokenizers", "torch", "transformers", "trl")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stage", stages.STAGES)
def test_runs_match_the_recorded_ones(
    root: Path, tmp_path: Path, stage: str, method: str, request: pytest.FixtureRequest
) -> None:
    job = stages.job(stage, method, training={"maxSteps": STEPS, "precision": "fp32"})
    run = tiny.make_run(root, job, workspace=tmp_path.name)
    stages.train(run)
    found = {name: stages.history(run, name) for name in ("loss", "grad_norm")}
    file = GOLDEN / f"{stage}-{method}.json"
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"environment": environment(), **found}, indent=1) + "\n")

    golden = json.loads(file.read_text())
    here = environment()
    differs = {name: (was, here[name]) for name, was in golden["environment"].items() if was != here[name]}
    assert len(found["loss"]) == len(found["grad_norm"]) == STEPS
    assert found["loss"] == pytest.approx(golden["loss"], rel=0, abs=LOSS), f"{differs} differ here: {__doc__}"
    assert found["grad_norm"] == pytest.approx(golden["grad_norm"], rel=GRAD_NORM), f"{differs} differ here: {__doc__}"


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    import torch

    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": processor(),
    }


def processor() -> str:
    """The name of the processor, from the kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
