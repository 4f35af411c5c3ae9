"""The real launcher in its own process, with ranks of `fake_rank`: ``fake_launch.py SETTINGS``."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from unittest import mock

from finetune_trainer.launcher import fence_watch, launch, supervise
from finetune_trainer.launcher.hang_detection import HangLimits
from finetune_trainer.launcher.options import LaunchOptions
from finetune_trainer.reporting import status
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.runtime import hostmemory
from finetune_trainer.runtime.hostmemory import HostMemory
from finetune_trainer.runtime.signals import Stop

WAITS = [
    (fence_watch, "INTERVAL"),
    (supervise, "NOTICE"),
    (supervise, "TERMINATION"),
    (status, "TIMEOUT"),
    (status, "RESULT_BUDGET"),
]
"""Time-outs that only the launcher uses."""

if __name__ == "__main__":
    stop = Stop().listen(signal.SIGTERM, signal.SIGINT)
    settings = json.loads(sys.argv[1])
    if settings["uid"] is not None:
        os.setuid(settings["uid"])
    known: dict[str, Iterator[int | None]] = {"unknown": repeat(None), "steady": repeat(1), "growing": iter(range(100))}
    counted = (HostMemory(1 << 30, 1 << 29, kills) for kills in known[settings["kills"]])
    mock.patch.object(hostmemory, "read", side_effect=counted).start()
    for module, name in WAITS:
        mock.patch.object(module, name, settings["waits"] * getattr(module, name)).start()
    script = str(Path(__file__).parent / "fake_rank.py")
    worker = [sys.executable, script, json.dumps(settings["ranks"]), json.dumps({"rendezvous": settings["join"]})]
    options = LaunchOptions(
        job_file=Path(settings["job"]),
        workspace=Path(settings["workspace"]),
        command=settings["command"],
        worker=worker,
        api=lambda: ApiServer(settings["url"], Path(settings["credentials"])) if settings["url"] else None,
        termination_message=Path(settings["termination"]),
        rank_0_address=("127.0.0.1", settings["port"]) if settings["port"] else None,
        rendezvous_seconds=settings["rendezvous"],
        hang_limits=HangLimits(**settings["hang_limits"]),
        restart_pauses=settings["pauses"],
    )
    sys.exit(launch.main(options, stop))
