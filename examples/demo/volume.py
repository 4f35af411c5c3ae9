"""The input of the demo's job: the content of the claim `models`, as a folder of this checkout.

Called by both playbooks. The cluster playbook copies it to a volume, the laptop playbook gives it to the trainer.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from examples import smollm2
from examples.demo.kubectl import DemoError

CHECKOUT = Path(__file__).resolve().parents[2]
JOB_FILE = CHECKOUT / "examples" / "sft-lora.yaml"
DATA = CHECKOUT / "examples" / "data"
UNPACK = CHECKOUT / "examples" / "smollm2.py"
RESULTS = CHECKOUT / "build" / "demo"
"""A folder per demo, for what it leaves on this machine. `make cluster-down` does not remove it; `make clean` does."""
MODEL = "SmolLM2-135M-Instruct"
LOCAL = CHECKOUT / ".cluster" / "demo-models"
QUESTION = "What does exit code 65 mean for a FineTuneJob?"
"""The data does not have this wording. The base model cannot know the answer."""


def job() -> dict[str, Any]:
    """The FineTuneJob of the example."""
    loaded: dict[str, Any] = yaml.safe_load(JOB_FILE.read_text())
    return loaded


def make() -> Path:
    """Make the folder with model and data. The model is unpacked only once."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    # In a separate process, because unpacking needs torch and much memory, and the demo needs neither.
    unpacked = subprocess.run([sys.executable, str(UNPACK), str(LOCAL / MODEL)], capture_output=True, text=True)
    if unpacked.returncode != 0:
        raise DemoError(f"unpacking {MODEL} failed:\n{unpacked.stderr[-2000:]}")
    shutil.copytree(DATA, LOCAL / "data", dirs_exist_ok=True)
    return LOCAL


def stamp(folder: Path) -> str:
    """The text that identifies an unpacked model."""
    return (folder / smollm2.COMPLETE).read_text()
