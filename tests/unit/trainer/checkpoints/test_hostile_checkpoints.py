"""Whoever can write to the workspace can write a checkpoint, with a manifest that fits it. It is used, or it is skipped
with its flaw, or the job ends with an error for the user; it never runs code, and reading it always ends."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.checkpoints import manifest, paths, resume
from finetune_trainer.checkpoints.manifest import BrokenCheckpoint, OtherFormat
from finetune_trainer.errors import WorkspaceOccupied
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.trainer.checkpoints.test_manifest import save

EXAMPLES = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
TEXTS = ["", "x", "../../../etc/passwd", "/dev/zero"]
JUNK: list[Any] = [*TEXTS, 0, -1, 10**30, 1.5, None, True, [], ["x"], {}, {"a": "b"}]


def forge(folder: Path, content: Any) -> None:
    """Write a manifest whose own digest is right."""
    if isinstance(content, dict):
        content = {**content, manifest.DIGEST: manifest._digest_of_content(content)}
    (folder / manifest.FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1))


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, part in inner for place in ((*here, name), *places(part, (*here, name)))]


@st.composite
def spoiled(draw: st.DrawFn, content: Any) -> Any:
    made = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        if not (known := places(made)):
            break
        *path, last = draw(st.sampled_from(known))
        where = made
        for step in path:
            where = where[step]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            del where[last]
        elif change == "add" and isinstance(where, dict):
            where[draw(st.sampled_from(["../x", "/etc/passwd", "a", ""]))] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        else:
            where[last] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return made


def look(folder: Path) -> list[str]:
    """What a run finds out about it."""
    try:
        known = manifest.read_complete(folder)
        return manifest.verify(folder, known)
    except (BrokenCheckpoint, OtherFormat) as error:
        return [type(error).__name__]


def test_a_manifest_of_somebody_else(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    honest = manifest.read(folder).to_dict()

    @EXAMPLES
    @given(content=spoiled(honest))
    def run(content: Any) -> None:
        forge(folder, content)
        assert all(look(folder)), "a flaw has words"

    run()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "null", "9" * 5000, "\x00", '{"digest": 1}'])
def test_a_manifest_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "checkpoint-3", 3)
    (folder / manifest.FILE).write_text(text)
    assert look(folder) == ["BrokenCheckpoint"]


def test_reading_a_checkpoint_ends(tmp_path: Path) -> None:
    """A pipe in the place of a file would be waited for, and a huge manifest would fill the memory."""
    for number, name in enumerate((manifest.FILE, "stage.json"), start=1):
        folder = save(tmp_path / f"checkpoint-{number}", number)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert look(folder)
    folder = save(tmp_path / "checkpoint-4", 4)
    known = manifest.read(folder)
    (folder / "stage.json").unlink()
    os.mkfifo(folder / "stage.json")
    assert manifest.verify(folder, known) == ["stage.json is no file"]
    folder = save(tmp_path / "checkpoint-5", 5)
    os.truncate(folder / manifest.FILE, manifest.LARGEST + 1)
    assert look(folder) == ["BrokenCheckpoint"]


@pytest.mark.parametrize("number", ["", "x", "-1", "١", "9" * 200])
def test_directories_with_other_names(tmp_path: Path, number: str) -> None:
    (tmp_path / "1-run" / f"checkpoint-{number}").mkdir(parents=True)
    for path in paths.newest_first(tmp_path):
        assert look(path) == ["BrokenCheckpoint"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("bad"), True),
        (RuntimeError("size mismatch for weight"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError(), False),
        (OSError(5, "Input/output error"), False),
    ],
    ids=str,
)
def test_only_errors_that_are_about_the_files_are_told_as_such(error: Exception, told: bool) -> None:
    if told:
        with pytest.raises(WorkspaceOccupied, match="Move it out of the"):
            resume.tell_unloadable(Path("/w/checkpoint-1"), error)
    else:
        resume.tell_unloadable(Path("/w/checkpoint-1"), error)
