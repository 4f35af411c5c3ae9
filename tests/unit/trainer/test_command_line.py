"""The command line, without training."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from finetune_trainer import __main__ as cli
from finetune_trainer import director
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.launcher import jobfile, launch, mounts
from finetune_trainer.launcher.options import LaunchOptions
from finetune_trainer.runtime.signals import Stop

from tests.unit.trainer.launcher.test_jobfile import manifest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "train|generate"),
        (["train"], "--job"),
        (["fly", "--job", "x"], "fly"),
        (["train", "--job", "x", "--volume", "models"], "must be CLAIM=DIR"),
        (["train", "--job", "x", "--volume", "models=/nowhere"], "directory that exists"),
        (["generate", "--job", "x"], "--prompt"),
        (["generate", "--job", "x", "--prompt", "?", "--prompts", "-"], "not allowed with"),
        (["generate", "--job", "x", "--prompt", "?", "--max-new-tokens", "0"], "at least 1"),
    ],
)
def test_an_invalid_command_line_is_an_error_of_the_user(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments, Stop())
    assert end.value.code == 64
    assert message in capsys.readouterr().err


def test_an_invalid_job_ends_with_64_and_one_message(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**manifest(), "kind": "Job"}))
    command = [sys.executable, "-m", "finetune_trainer", "train", "--job", str(tmp_path / "job.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert "the trainer runs exactly one" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_start_imports_no_torch() -> None:
    """Imports dominate the start. A job that is done or invalid must not wait for them."""
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'datasets'}"
    imports = "import sys, finetune_trainer.__main__, finetune_trainer.launcher.worker"
    code = f"{imports}; assert not {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_sigterm_before_any_rank_started(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest()))
    stop = Stop()
    stop.count = 1
    options = LaunchOptions(tmp_path / "job.yaml", tmp_path / "ws", worker=["/nowhere"])
    assert launch.main(options, stop) == 75


def test_every_claim_has_a_directory(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest()))
    job = jobfile.read_job(tmp_path / "job.yaml", tmp_path)
    volumes = mounts.volume_folders(job, tmp_path / "ws", {"models": tmp_path / "m"})
    assert volumes == {"work": tmp_path / "ws", "models": tmp_path / "m"}


def test_stop_records_the_first_time_and_counts() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        stop = Stop().listen(signal.SIGTERM, signal.SIGINT)
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        first = stop.at
        signal.raise_signal(signal.SIGINT)
        assert (stop.requested, stop.count, stop.interrupts, stop.at) == (True, 2, 1, first)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="the stages are pt, sft, rm, dpo, ppo, kto; this image has"):
        director.find_workflow("ppo2")
    assert "sft" in director.available()
