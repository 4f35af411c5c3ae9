"""What the demo's job reads: the claim `models`, as a folder of this checkout.

Called by both playbooks. The cluster's copies it to a volume, the laptop's gives it to the trainer as it is.
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
MODEL = "SmolLM2-135M-Instruct"
LOCAL = CHECKOUT / ".cluster" / "demo-models"
QUESTION = "What does exit code 65 mean for a FineTuneJob?"
"""Not in the data in these words; the base model can't know."""


def job() -> dict[str, Any]:
    """The FineTuneJob as it stands in the example."""
    loaded: dict[str, Any] = yaml.safe_load(JOB_FILE.read_text())
    return loaded


def make() -> Path:
    """The folder, with model and data in it. The model is unpacked once."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    # A process of its own: it needs torch and much memory, and the demo needs neither.
    made = subprocess.run([sys.executable, str(UNPACK), str(LOCAL / MODEL)], capture_output=True, text=True)
    if made.returncode != 0:
        raise DemoError(f"unpacking {MODEL} failed:\n{made.stderr[-2000:]}")
    shutil.copytree(DATA, LOCAL / "data", dirs_exist_ok=True)
    return LOCAL


def stamp(folder: Path) -> str:
    """What tells one unpacked model from another."""
    return (folder / smollm2.COMPLETE).read_text()
