"""The command line, without a training."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from finetune_trainer import __main__ as cli
from finetune_trainer import director, jobfile, launch
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.stopping import Stop

from tests.unit.trainer.test_jobfile import manifest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "train|generate"),
        (["train"], "--job"),
        (["fly", "--job", "x"], "fly"),
        (["train", "--job", "x", "--volume", "models"], "must be CLAIM=DIR"),
        (["train", "--job", "x", "--volume", "models=/nowhere"], "folder that exists"),
        (["generate", "--job", "x"], "--prompt"),
        (["generate", "--job", "x", "--prompt", "?", "--max-new-tokens", "0"], "from 1"),
    ],
)
def test_a_wrong_command_line_is_the_users_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments, Stop())
    assert end.value.code == 64
    assert said in capsys.readouterr().err


def test_a_wrong_job_ends_with_64_and_one_message(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**manifest(), "kind": "Job"}))
    command = [sys.executable, "-m", "finetune_trainer", "train", "--job", str(tmp_path / "job.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert "the trainer runs exactly one" in done.stderr
    assert "Traceback" not in done.stderr


def test_starting_costs_no_torch() -> None:
    """Imports dominate the start: a job that is done, or wrong, must not pay for them."""
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'datasets'}"
    code = f"import sys, finetune_trainer.__main__, finetune_trainer.worker; assert not {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_told_to_stop_before_any_rank_started(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest()))
    stop = Stop()
    stop.count = 1
    options = launch.Options(tmp_path / "job.yaml", tmp_path / "ws", worker=["/nowhere"])
    assert launch.main(options, stop) == 75


def test_every_claim_has_a_folder(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest()))
    job = jobfile.read_job(tmp_path / "job.yaml", tmp_path)
    found = launch.mounted(job, tmp_path / "ws", {"models": tmp_path / "m"})
    assert found == {"work": tmp_path / "ws", "models": tmp_path / "m"}


def test_stop_remembers_the_first_time_and_counts() -> None:
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


def test_a_stage_that_this_image_lacks() -> None:
    with pytest.raises(InvalidSpec, match="the stages are pt, sft, rm, dpo, ppo, kto; this image has"):
        director.find_workflow("ppo2")
    assert "sft" in director.available()
