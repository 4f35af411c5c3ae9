"""``python -m finetune_operator``: configured by FINETUNE_* (see `finetune_operator.settings`)."""

import asyncio
import logging
import os
import sys

from pydantic import ValidationError

from finetune_operator.app import Operator
from finetune_operator.cluster import Cluster
from finetune_operator.settings import Settings, from_environment


async def _run(settings: Settings) -> None:
    await Operator(settings, await Cluster.connect()).run()


def main() -> int:
    """Run until told to stop."""
    try:
        settings = from_environment(dict(os.environ))
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            print(f"FINETUNE_{name}: {problem['msg']}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    asyncio.run(_run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
