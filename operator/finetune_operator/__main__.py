"""``python -m finetune_operator``, configured by FINETUNE_* (see `finetune_operator.settings`)."""

import asyncio
import os
import signal
import socket
import sys
from uuid import uuid4

from pydantic import ValidationError

from finetune_operator import logs
from finetune_operator.app import Operator
from finetune_operator.cluster import Cluster, Leases
from finetune_operator.gate import Gate
from finetune_operator.leadership import Elector
from finetune_operator.predecessors import Installation
from finetune_operator.settings import Settings, from_environment


async def _until_stopped(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Before kopf listens to them an operator may hold the Lease already, and has to give
    it back."""
    running = asyncio.create_task(_run(settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()


async def _run(settings: Settings) -> None:
    gate = Gate()
    leases = await Leases.connect(settings.lease_namespace, settings.lease_name)
    identity = settings.identity or f"{socket.gethostname()}-{uuid4().hex[:5]}"
    elector = Elector(leases, gate, identity, Installation(settings.operator_selector))
    try:
        await Operator(settings, await Cluster.connect(gate)).run(elector)
    finally:
        await leases.close()


def main() -> int:
    """Run until SIGTERM or SIGINT."""
    try:
        settings = from_environment(dict(os.environ))
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            print(f"FINETUNE_{name}: {problem['msg']}", file=sys.stderr)
        return 2
    logs.set_up(settings.log_level, settings.log_format)
    asyncio.run(_until_stopped(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
