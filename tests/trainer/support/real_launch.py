"""The real launcher with real ranks, as in a pod: ``real_launch.py SETTINGS``.

Only where the API server and the termination message are is not as in a pod.
"""

import json
import signal
import sys
from pathlib import Path

from finetune_trainer.launcher import launch
from finetune_trainer.launcher.options import LaunchOptions
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.runtime import redaction
from finetune_trainer.runtime.signals import Stop

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    redaction.install()
    options = LaunchOptions(
        job_file=Path(settings["job"]),
        workspace=Path(settings["workspace"]),
        volumes={name: Path(folder) for name, folder in settings["volumes"].items()},
        allow_remote_code=True,
        api=lambda: ApiServer(settings["url"], Path(settings["credentials"])),
        termination_message=Path(settings["termination"]),
    )
    sys.exit(launch.main(options, Stop().listen(signal.SIGTERM)))
