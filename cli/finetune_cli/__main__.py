"""`finetune` and `kubectl finetune`: the entry point. What takes long to import waits until a command needs it."""

import os
import sys


def main() -> None:
    """Run a command; every problem becomes a message and an exit code."""
    from finetune_cli.app import app
    from finetune_cli.problem import Exit, Problem

    plugin = os.path.basename(sys.argv[0]).startswith("kubectl")
    try:
        app(prog_name="kubectl finetune" if plugin else "finetune", standalone_mode=True)
    except Problem as problem:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(problem.code)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.DONE)


if __name__ == "__main__":
    main()
