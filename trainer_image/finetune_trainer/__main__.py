"""The trainer's command line: ``python -m finetune_trainer prepare|train|generate|export|estimate --job FILE``.

FILE is a FineTuneJob as YAML, or the resolved job that the operator mounts: the same job runs in a cluster and on a
laptop. The exit codes are those of `finetune_api.exit_codes`, also for an invalid command line.
"""

import signal

from finetune_trainer.runtime.signals import Stop

STOP = Stop()
if __name__ == "__main__":
    # Before the slower imports: see `runtime.signals`.
    STOP.listen(signal.SIGTERM, signal.SIGINT)

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NoReturn  # noqa: E402

from finetune_api.contract import ResolvedJob  # noqa: E402
from finetune_api.exit_codes import ExitCode  # noqa: E402

from finetune_trainer import notify  # noqa: E402
from finetune_trainer.errors import NotFound, TrainerError  # noqa: E402
from finetune_trainer.launcher import jobfile, launch, mounts  # noqa: E402
from finetune_trainer.launcher.options import LaunchOptions  # noqa: E402
from finetune_trainer.reporting import library_logs  # noqa: E402
from finetune_trainer.runtime import redaction  # noqa: E402
from finetune_trainer.workspace import fencing  # noqa: E402
from finetune_trainer.workspace.folders import Folders, layout  # noqa: E402


class Parser(argparse.ArgumentParser):
    """argparse with the contract's exit code for an error of the user."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.INVALID_SPEC, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="python -m finetune_trainer", description="Train a FineTuneJob, and use its model.")
    names = "prepare|train|generate|export|estimate|notify"
    commands = top.add_subparsers(dest="command", required=True, metavar=names)
    common = Parser(add_help=False)
    common.add_argument(
        "--job", type=Path, required=True, metavar="FILE", help="FineTuneJob (YAML) or resolved job (JSON)"
    )
    common.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="directory for checkpoints, reports and artifact; default: the pod's mount, else ./workspace",
    )
    common.add_argument(
        "--volume",
        type=_volume,
        action="append",
        default=[],
        metavar="CLAIM=DIR",
        help="directory for a claim in the job's sources; may be given several times",
    )
    common.add_argument(
        "--config-map",
        type=_volume,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="directory for a ConfigMap in the job's sources; may be given several times",
    )
    common.add_argument(
        "--allow-remote-code",
        action="store_true",
        help="allow a job with model.trustRemoteCode to run the code in its model's repository",
    )
    commands.add_parser("prepare", parents=[common], help="fetch, validate and tokenize the job's data")
    train = commands.add_parser(
        "train", parents=[common], help="train the job, or resume it from its newest checkpoint"
    )
    train.add_argument(
        "--keep", action="store_true", help="train nothing: make the artifact of the newest checkpoint, on the CPU"
    )
    export = commands.add_parser("export", parents=[common], help="merge the trained adapter into its base model")
    export.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for the merged model; must not exist"
    )
    export.add_argument(
        "--dtype", choices=("auto", "bf16", "fp16", "fp32"), help="data type of the weights; default: output.dtype"
    )
    _generate_options(commands.add_parser("generate", parents=[common], help="answer prompts with the trained model"))
    estimate = commands.add_parser(
        "estimate", parents=[common], help="estimate GPU memory by tuning method and number of GPUs, as JSON"
    )
    estimate.add_argument(
        "--model", type=Path, metavar="DIR", help="directory with the config.json of the model; default: it is fetched"
    )
    estimate.add_argument("--gpus", type=_positive, action="append", metavar="N", help="default: 1, 2, 4 and 8")
    commands.add_parser("notify", help="tell a webhook how a job ended, as the environment says")
    return top


def _generate_options(generate: argparse.ArgumentParser) -> None:
    asked = generate.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="text of the user's message")
    asked.add_argument(
        "--prompts",
        choices=("-",),
        help="read prompts from the standard input, a JSON text on each line, and write the answers as lines of JSON",
    )
    generate.add_argument(
        "--checkpoint",
        choices=("base", "artifact"),
        default="artifact",
        help="the model before (base) or after (artifact) training; default: %(default)s",
    )
    generate.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N", help="default: %(default)s")


def main(arguments: Sequence[str], stop: Stop) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.command == "notify":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return notify.main(os.environ)
    options = LaunchOptions(
        job_file=args.job,
        workspace=args.workspace,
        volumes=dict(args.volume),
        config_maps=dict(args.config_map),
        command="prepare" if args.command == "prepare" else "train",
        keep=args.command == "train" and args.keep,
        allow_remote_code=args.allow_remote_code,
    )
    if args.command in ("prepare", "train"):
        return launch.main(options, stop)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    library_logs.filter_log_lines()
    try:
        workspace = mounts.workspace_root(args.workspace, in_cluster=jobfile.read_attempt(args.job) is not None)
        job = jobfile.read_job(args.job, workspace, allow_remote_code=args.allow_remote_code)
        volumes = mounts.volume_folders(job, workspace, options.volumes)
        if args.command == "estimate":
            estimate(job, volumes, args)
            return ExitCode.DONE
        folders = layout(workspace, job.name, 1, args.command, volumes)
        (generate if args.command == "generate" else export)(job, folders, args)
    except TrainerError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.DONE


def generate(job: ResolvedJob, folders: Folders, args: argparse.Namespace) -> None:
    """Print the answer to a prompt, or to each prompt of the standard input."""
    from finetune_trainer.generation import command  # imports torch

    base, longest = args.checkpoint == "base", args.max_new_tokens
    if args.prompts:
        command.answer_all(job, folders, sys.stdin, sys.stdout, base, longest)
    else:
        print(command.generate(job, folders, args.prompt, base, longest))


def export(job: ResolvedJob, folders: Folders, args: argparse.Namespace) -> None:
    """Merge the job's adapter into its base model, and write the whole model."""
    if fencing.earlier_result(folders, job) is None:
        raise NotFound(f"jobs/{job.name} in {folders.workspace} has no artifact of this job. Train the job first")
    from finetune_trainer.artifact.export import export as write_model  # imports torch

    write_model(job, folders, args.out, args.dtype or job.output.dtype)
    print(f"The merged model is in {args.out}")


def estimate(job: ResolvedJob, volumes: dict[str, Path], args: argparse.Namespace) -> None:
    """Print what each tuning method needs on some numbers of GPUs."""
    if args.model and not (args.model / "config.json").is_file():
        raise NotFound(f"--model {args.model}: has no config.json. Name the folder of the model")
    from finetune_trainer.fetch.model_config import fetch_config

    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or fetch_config(str(job.model.source), volumes, Path(scratch))
        from finetune_trainer.prepare.memory_table import estimates  # imports torch

        print(json.dumps(list(estimates(job, model, args.gpus or (1, 2, 4, 8)))))


def _volume(text: str) -> tuple[str, Path]:
    claim, separator, folder = text.partition("=")
    if not claim or not separator or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} given; must be CLAIM=DIR with a directory that exists")
    return claim, Path(folder)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given; must be an integer of at least 1")
    return int(text)


if __name__ == "__main__":
    redaction.install()
    sys.exit(main(sys.argv[1:], STOP))
