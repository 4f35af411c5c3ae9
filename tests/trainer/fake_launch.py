"""The real launcher in a process of its own, with `fake_rank` for its ranks: ``fake_launch.py SETTINGS``."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from unittest import mock

from finetune_trainer import fencing, hostmemory, launch, watch
from finetune_trainer.hostmemory import HostMemory
from finetune_trainer.reporting import status
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.stillness import Bounds
from finetune_trainer.stopping import Stop

WAITS = [
    (fencing, "INTERVAL"),
    (watch, "NOTICE"),
    (watch, "GIVE_UP"),
    (status, "TIMEOUT"),
    (status, "RESULT_BUDGET"),
]
"""Time-outs that are a launcher's alone."""

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
    worker = [sys.executable, script, json.dumps(settings["ranks"]), json.dumps({"meet": settings["meet"]})]
    options = launch.Options(
        job_file=Path(settings["job"]),
        workspace=Path(settings["workspace"]),
        command=settings["command"],
        worker=worker,
        api=lambda: ApiServer(settings["url"], Path(settings["credentials"])) if settings["url"] else None,
        termination_message=Path(settings["termination"]),
        meet_at=("127.0.0.1", settings["port"]) if settings["port"] else None,
        rendezvous_seconds=settings["rendezvous"],
        bounds=Bounds(**settings["bounds"]),
    )
    sys.exit(launch.main(options, stop))
