"""Locating mounted sources: messages for missing files and for missing permissions."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_trainer.errors import AccessDenied, NotFound
from finetune_trainer.fetch import mounted
from finetune_trainer.model import model_files


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that may not be opened. Simulated, because tests often run as root, who may read anything."""
    refused: list[Path] = []
    real = os.open

    def opened(path: str | Path, flags: int, *args: int, **kwargs: int) -> int:
        if Path(path) in refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)
    return refused


@pytest.mark.parametrize(
    ("path", "words"),
    [("small/x", "pvc://models/small has: config.json"), ("small/config.json/x", "small/config.json is a file")],
)
def test_a_missing_path_is_reported_with_what_exists(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").touch()
    with pytest.raises(NotFound, match=words):
        mounted.find(f"pvc://models/{path}", {"models": tmp_path})


def test_a_source_without_read_permission_is_refused(tmp_path: Path, refuse: list[Path]) -> None:
    file = tmp_path / "data.jsonl"
    file.touch()
    assert mounted.find("pvc://models/data.jsonl", {"models": tmp_path}) == file
    refuse.append(file)
    with pytest.raises(AccessDenied, match=rf"uid {os.getuid()}, .* may not read {file}.*chmod.*fsGroup"):
        mounted.find("pvc://models/data.jsonl", {"models": tmp_path})


def test_a_model_with_a_file_without_read_permission_is_refused(tmp_path: Path, refuse: list[Path]) -> None:
    (tmp_path / "config.json").write_text("{}")
    refuse.append(tmp_path / "config.json")
    with pytest.raises(AccessDenied, match=r"config.json"):
        model_files.check_model(tmp_path, "pvc://models/small")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission_for_the_images_user_is_refused(tmp_path: Path) -> None:
    """With a real user, so the kernel decides."""
    root = tmp_path / "volume"
    (root / "closed").mkdir(parents=True)
    (root / "closed" / "data.jsonl").touch()
    (root / "closed").chmod(0o700)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom finetune_trainer.fetch import mounted\n"
        "root = Path(sys.argv[1])\nos.setuid(10001)\n"
        "mounted.find('pvc://models/closed/data.jsonl', {'models': root})"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=False)
    assert "AccessDenied: pvc://models/closed/data.jsonl: uid 10001" in ended.stderr
