"""The trainer's command line: ``python -m finetune_trainer prepare|train|generate|export --job FILE``.

FILE is a FineTuneJob as YAML, or the resolved job as the operator mounts it: the same job runs in a cluster and on a
laptop. Exit codes are those of `finetune_api.exit_codes`, also for a wrong command line.
"""

import signal

from finetune_trainer.stopping import Stop

STOP = Stop()
if __name__ == "__main__":
    # Before anything heavier is imported: see `stopping`.
    STOP.listen(signal.SIGTERM, signal.SIGINT)

import argparse  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NoReturn  # noqa: E402

from finetune_api.contract import ResolvedJob  # noqa: E402
from finetune_api.exit_codes import ExitCode  # noqa: E402

from finetune_trainer import jobfile, launch, workspace  # noqa: E402
from finetune_trainer.errors import NotFound, TrainerError  # noqa: E402
from finetune_trainer.run import Folders  # noqa: E402


class Parser(argparse.ArgumentParser):
    """argparse with the contract's exit code for a user's error."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.INVALID_SPEC, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="python -m finetune_trainer", description="Train a FineTuneJob, and use its result.")
    commands = top.add_subparsers(dest="command", required=True, metavar="prepare|train|generate|export")
    common = Parser(add_help=False)
    common.add_argument(
        "--job", type=Path, required=True, metavar="FILE", help="FineTuneJob (YAML), or resolved job (JSON)"
    )
    common.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints, reports and artifact; default: the pod's mount, else ./workspace",
    )
    common.add_argument(
        "--volume",
        type=_volume,
        action="append",
        default=[],
        metavar="CLAIM=DIR",
        help="folder that stands for a claim of the job's sources; may be given several times",
    )
    common.add_argument(
        "--config-map",
        type=_volume,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="folder that stands for a ConfigMap of the job's sources; may be given several times",
    )
    common.add_argument(
        "--allow-remote-code",
        action="store_true",
        help="let a job with model.trustRemoteCode run the code that its model brings",
    )
    commands.add_parser("prepare", parents=[common], help="fetch, check and tokenize what the job trains on")
    commands.add_parser("train", parents=[common], help="train the job, or go on from its newest checkpoint")
    export = commands.add_parser(
        "export", parents=[common], help="merge the adapter that the job trained into its base"
    )
    export.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the whole model; must be new"
    )
    export.add_argument(
        "--dtype", choices=("auto", "bf16", "fp16", "fp32"), help="number type of the weights; default: output.dtype"
    )
    generate = commands.add_parser("generate", parents=[common], help="answer a prompt with what the job trained")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the question")
    generate.add_argument(
        "--checkpoint",
        choices=("base", "artifact"),
        default="artifact",
        help="ask the model before (base) or after (artifact) training; default: %(default)s",
    )
    generate.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N", help="default: %(default)s")
    return top


def main(arguments: Sequence[str], stop: Stop) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(arguments)
    options = launch.Options(
        job_file=args.job,
        workspace=args.workspace,
        volumes=dict(args.volume),
        config_maps=dict(args.config_map),
        command="prepare" if args.command == "prepare" else "train",
        allow_remote_code=args.allow_remote_code,
    )
    if args.command in ("prepare", "train"):
        return launch.main(options, stop)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        root = launch.workspace_root(options, in_cluster=jobfile.read_attempt(options.job_file) is not None)
        job = jobfile.read_job(options.job_file, root, allow_remote_code=options.allow_remote_code)
        folders = workspace.layout(root, job.name, 1, args.command, launch.mounted(job, root, options.volumes))
        (generate if args.command == "generate" else export)(job, folders, args)
    except TrainerError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.DONE


def generate(job: ResolvedJob, folders: Folders, args: argparse.Namespace) -> None:
    """Print the answer to one prompt."""
    from finetune_trainer.generate import generate as answer  # torch: only when it is needed

    print(answer(job, folders, args.prompt, args.checkpoint == "base", args.max_new_tokens))


def export(job: ResolvedJob, folders: Folders, args: argparse.Namespace) -> None:
    """Write the whole model that the job's adapter makes of its base."""
    if workspace.earlier_result(folders, job) is None:
        raise NotFound(f"jobs/{job.name} in {folders.workspace} has no artifact of this job: train it first")
    from finetune_trainer.export import export as write_model  # torch: only when it is needed

    write_model(job, folders, args.out, args.dtype or job.output.dtype)
    print(f"The whole model is in {args.out}")


def _volume(text: str) -> tuple[str, Path]:
    claim, separator, folder = text.partition("=")
    if not claim or not separator or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} given; must be CLAIM=DIR with a folder that exists")
    return claim, Path(folder)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given; must be a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], STOP))
