"""Completion for `kubectl finetune`: kubectl asks the program kubectl_complete-finetune."""

import os
import sys

from finetune_cli.app import app


def main() -> None:
    """kubectl calls this with the words of the line; it expects the candidates, and a directive for files."""
    words = ["finetune", *sys.argv[1:]]
    os.environ["_FINETUNE_COMPLETE"] = "complete_bash"
    os.environ["COMP_WORDS"] = " ".join(words)
    os.environ["COMP_CWORD"] = str(len(words) - 1)
    try:
        app(prog_name="finetune")
    except SystemExit:
        pass
    finally:
        print(":4")  # no files
