"""The program that reads a workspace for the command line."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.curves import unpack
from finetune_api.exit_codes import ExitCode
from finetune_trainer import reader
from finetune_trainer.reporting.curves import Curves
from finetune_trainer.workspace.files import digest_folder


def run(workspace: Path, *words: str) -> tuple[int, bytes]:
    out = io.BytesIO()
    return reader.main(["--workspace", str(workspace), *words], out), out.getvalue()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name, data in {"a/z": b"one", "a/b/c": b"", "a/b.txt": b"\x00\xff", "a/b/d": b"three"}.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path


def test_the_bytes_of_a_folder_are_those_of_its_list(workspace: Path, tmp_path: Path) -> None:
    code, listed = run(workspace, "list", "a")
    files = json.loads(listed)["files"]
    assert (code, [file["name"] for file in files]) == (0, ["b.txt", "b/c", "b/d", "z"])
    _, content = run(workspace, "send", "a")
    copy = tmp_path / "copy"
    at = 0
    for file in files:
        (copy / file["name"]).parent.mkdir(parents=True, exist_ok=True)
        (copy / file["name"]).write_bytes(content[at : at + file["size"]])
        at += file["size"]
    assert at == len(content)
    assert digest_folder(copy) == digest_folder(workspace / "a")


def test_the_rest_of_a_folder_begins_at_any_byte(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CHUNK", 2)
    _, whole = run(workspace, "send", "a")
    for offset in range(len(whole) + 2):
        assert run(workspace, "send", "a", "--offset", str(offset)) == (0, whole[offset:])


def test_the_points_are_those_of_the_status(tmp_path: Path) -> None:
    lines = [{"current_steps": step, "loss": step / 8, "lr": None, "rewards/margins": 0.5} for step in range(1, 5)]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"current_st')
    curves = Curves()
    for line in lines:
        curves.add(line)
    reported = unpack({"progress": {"curves": curves.due(at_once=True)}})
    assert reported.keys() == {"loss", "margin"}
    for metric, points in reported.items():
        _, out = run(tmp_path, "curve", "log", "--metric", metric)
        assert [tuple(json.loads(point)) for point in out.splitlines()] == points


def test_what_does_not_exist_is_named(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(workspace, "send", "nothing") == (reader.NOT_FOUND, b"")
    assert "nothing does not exist" in capsys.readouterr().err
    (workspace / "log").write_text('{"current_steps": 1, "loss": 1.0}\n')
    assert run(workspace, "curve", "log", "--metric", "accuracy") == (reader.NOT_FOUND, b"")
    assert "It has: loss" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run(workspace, "fly", "a")
    assert ended.value.code == ExitCode.INVALID_SPEC == reader.INVALID
    assert (reader.NOT_FOUND, reader.UNREADABLE) == (ExitCode.NOT_FOUND, ExitCode.WORKSPACE_UNUSABLE)


def test_the_start_imports_only_the_standard_library() -> None:
    program = "import sys; import finetune_trainer.reader; print({'torch', 'pydantic', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
