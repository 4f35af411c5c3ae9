"""Reads the workspace for `kubectl finetune`: ``python -m finetune_trainer.reader list|send|curve PATH``.

It runs in a pod that mounts the workspace read-only, started by a user's command line. PATH is relative to the
workspace. A folder is sent as the contents of its files, one after the other in the order of ``list``, so a reader that
has the first N bytes asks for the rest with ``--offset N``. Only the standard library is imported: a start takes
milliseconds.

Exit codes: 0, 66 if PATH does not exist, 74 if it cannot be read, 64 for a wrong command line.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from finetune_trainer.reporting.names import CURVES

ROOT = Path("/workspace")
CHUNK = 1 << 20
INVALID, NOT_FOUND, UNREADABLE = 64, 66, 74
"""As in `finetune_api.exit_codes`, which takes a while to import. A test compares them."""


class Missing(Exception):
    """PATH does not exist, or has nothing of what was asked for."""


class Parser(argparse.ArgumentParser):
    """argparse with the trainer's exit code for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(INVALID, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="python -m finetune_trainer.reader", description="Read the workspace of a FineTuneJob.")
    top.add_argument("--workspace", type=Path, default=ROOT, metavar="DIR", help="default: %(default)s")
    commands = top.add_subparsers(dest="command", required=True)
    for name, text in (
        ("list", "print the names and sizes of the files below PATH, as JSON"),
        ("send", "write the bytes of PATH to the standard output"),
        ("curve", "print the points of a metric from the log PATH, each as [step, value]"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("path", metavar="PATH", help="file or folder, relative to the workspace")
        if name == "send":
            command.add_argument("--offset", type=int, default=0, metavar="N", help="leave out the first N bytes")
        if name == "curve":
            command.add_argument("--metric", default="loss", metavar="NAME", help="default: %(default)s")
    return top


def main(arguments: Sequence[str], out: BinaryIO) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(arguments)
    path: Path = args.workspace / args.path
    try:
        if args.command == "list":
            out.write(json.dumps({"files": listed(path)}).encode() + b"\n")
        elif args.command == "send":
            for chunk in content(path, args.offset):
                out.write(chunk)
        else:
            for point in points(path, args.metric):
                out.write(json.dumps(point).encode() + b"\n")
        out.flush()
    except Missing as error:
        print(error, file=sys.stderr)
        return NOT_FOUND
    except OSError as error:
        print(f"{path} cannot be read: {error.strerror}", file=sys.stderr)
        return UNREADABLE
    return 0


def files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder, sorted by name as in the digest of an artifact."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise Missing(f"{path} does not exist")
    return sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: _name(path, file))


def listed(path: Path) -> list[dict[str, str | int]]:
    """Name and size of each file, in the order in which `content` has them."""
    return [{"name": _name(path, file), "size": file.stat().st_size} for file in files(path)]


def content(path: Path, offset: int = 0) -> Iterator[bytes]:
    """The bytes of all files one after the other, without the first ``offset``."""
    for file in files(path):
        size = file.stat().st_size
        if offset >= size:
            offset -= size
            continue
        with file.open("rb") as stream:
            stream.seek(offset)
            offset = 0
            while chunk := stream.read(CHUNK):
                yield chunk


def points(path: Path, metric: str) -> Iterator[tuple[int, float]]:
    """The points of a metric, under its name in the status, from a ``trainer_log.jsonl``. Raises Missing with the
    metrics that the log has."""
    if not path.is_file():
        raise Missing(f"{path} does not exist")
    found: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for text in lines:
            try:
                line = json.loads(text)
            except ValueError:  # the training writes this line at this moment, or was killed while it did
                continue
            values = {name: line[key] for key, name in CURVES.items() if line.get(key) is not None}
            found |= values.keys()
            if metric in values:
                yield line["current_steps"], values[metric]
    if metric not in found:
        raise Missing(f"The log has no metric {metric}. It has: {', '.join(sorted(found)) or 'no lines yet'}")


def _name(folder: Path, file: Path) -> str:
    return file.name if file == folder else file.relative_to(folder).as_posix()


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:], sys.stdout.buffer))
