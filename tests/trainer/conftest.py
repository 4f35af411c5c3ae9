"""One thread a process, set before torch is imported: small models are faster so, and sums are the same everywhere."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.support.forge import Forge

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


@pytest.fixture
def drawn() -> None:
    """For tests of runs that are to draw the pictures of their metrics."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other runs draw none: a run of eight steps would take twice as long with them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("finetune_trainer.reporting.plots.write", lambda *_: None)


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's run has decided to recompute is not told of the next one's."""
    monkeypatch.setattr("finetune_trainer.runtime.gpumemory._recomputation", [])


@pytest.fixture(autouse=True)
def light_collections() -> None:
    """accelerate has the garbage collected after each training, which takes a second where it has to look through all
    that was imported: from the second test on this is not necessary."""
    if "trl" in sys.modules and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else libraries complain at exit of what is left


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model; tests only read it."""
    from tests.trainer.support import tiny

    return tiny.save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def root(tmp_path: Path, model: Path) -> Path:
    """The volumes ``models`` (the tiny model) and ``data`` (24 rows), and room for a workspace."""
    from tests.trainer.support import tiny

    (tmp_path / "models").symlink_to(model.parent)
    tiny.save_rows(tmp_path / "data" / "rows.jsonl")
    return tmp_path


@pytest.fixture(scope="session")
def stage_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `stages.save_volumes` makes; tests only read it."""
    from tests.trainer.support import stages

    return stages.save_volumes(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def stage_root(tmp_path: Path, stage_volumes: Path) -> Path:
    """The same models, a copy of the data, and room for a workspace."""
    (tmp_path / "models").symlink_to(stage_volumes / "models")
    shutil.copytree(stage_volumes / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """Forks launchers and ranks from one process that has imported them."""
    server = Forge()
    yield server
    server.close()
