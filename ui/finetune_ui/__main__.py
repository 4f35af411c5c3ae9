"""`python -m finetune_ui`: the page in a pod."""

import sys

from finetune_cli.problem import Problem

from finetune_ui.serve import in_cluster

if __name__ == "__main__":
    try:
        in_cluster()
    except Problem as problem:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(problem.code)
