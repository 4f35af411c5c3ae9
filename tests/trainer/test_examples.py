"""Every FineTuneJob of examples/ trains as it stands, and the chain follows itself.

Here on a tiny model under the real one's name and for two steps; with ``--sweep`` on SmolLM2 itself, unabridged.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_trainer.launcher.jobfile import read_job

from examples import preferences
from examples.demo import volume
from tests.trainer.support import tiny
from tests.trainer.support.attempt import Series
from tests.trainer.support.forge import Forge

EXAMPLES = volume.CHECKOUT / "examples"
KINDS = {
    "pt": "model",
    "sft-lora": "adapter",
    "sft-full": "model",
    "sft-qlora": "model",
    "rm": "adapter",
    "dpo": "adapter",
    "kto": "adapter",
    "ppo": "adapter",
    "chain/1-sft": "model",
    "chain/2-rm": "adapter",
    "chain/3-ppo": "adapter",
}
"""Files below examples/ and the artifact that each makes, in an order in which each finds those that it names."""


@pytest.fixture(scope="module")
def sweep(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--sweep"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, sweep: bool) -> Path:
    """The volumes: what the claim ``models`` holds."""
    root = tmp_path_factory.mktemp("root")
    if sweep:
        (root / "models").symlink_to(volume.make())
    else:
        tiny.save_model(root / "models" / volume.MODEL)
        shutil.copytree(volume.DATA, root / "models" / "data")
    return root


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volumes of all examples: each finds what the examples before have made."""
    return tmp_path_factory.mktemp("workspace")


@pytest.mark.parametrize("example", KINDS)
def test_it_trains_as_it_stands(
    forge: Forge, root: Path, tmp_path: Path, workspace: Path, sweep: bool, example: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(abridged(yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text()), sweep)))
    job = read_job(file, workspace)
    series = Series(forge, root, tmp_path / "pod", job, shared=workspace)
    assert series.run() == 0, series.log
    artifact = series.result.artifact
    assert artifact is not None
    assert artifact.kind == KINDS[example]
    lines = (series.home / "reports" / "trainer_log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["current_steps"] == json.loads(lines[-1])["total_steps"]


def abridged(document: dict[str, Any], sweep: bool) -> dict[str, Any]:
    """The example, but for two steps; with --sweep as it is."""
    if not sweep:
        document["spec"]["training"].pop("epochs", None)
        document["spec"]["training"]["maxSteps"] = 2
    return document


def test_every_example_is_run() -> None:
    files = {file.relative_to(EXAMPLES).with_suffix("").as_posix() for file in EXAMPLES.rglob("*.yaml")}
    assert set(KINDS) == files - {"claims", "copy/pod"}


def test_preferences_are_those_that_the_script_writes() -> None:
    for name, text in preferences.files().items():
        assert (volume.DATA / name).read_text() == text, f"{name}: run python examples/preferences.py"
