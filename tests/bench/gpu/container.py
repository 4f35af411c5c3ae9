"""``python -m tests.bench.gpu.container``: `gpu_check` in the trainer image, as a pod runs it.

That is as uid 10001, on a read-only root file system, with GPUs by the container runtime of the machine. Needs nothing
but Python and a container engine.

``--available`` only says whether an engine that works is there. What else is given goes to `gpu_check`.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
RESULTS = CHECKOUT / "build" / "gpu-check"
ENGINES: dict[str, list[str]] = {
    "podman": ["--device", "nvidia.com/gpu=all"],
    "docker": ["--gpus", "all"],
    "nerdctl": ["--gpus", "all"],
}
"""Engine -> how it is asked for GPUs. Podman takes them from a CDI specification (``nvidia-ctk cdi generate``)."""
IMAGE = "finetune-trainer:gpu-check"
USER = 10001


def engine() -> str | None:
    """The first engine that answers: a client without its daemon does not."""
    for name in ENGINES:
        try:
            if subprocess.run([name, "info"], capture_output=True, timeout=60).returncode == 0:
                return name
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


def build_command(name: str) -> list[str]:
    """How the image is built. Unchanged layers come from the engine's cache."""
    return [name, "build", "--target", "trainer", "--tag", IMAGE, str(CHECKOUT)]


def run_command(name: str, arguments: Sequence[str], results: Path = RESULTS) -> list[str]:
    """How the check is run. Programs may run in /tmp, as in a pod: Triton loads what it has compiled."""
    gpus = [] if "--cpu" in arguments else ENGINES[name]
    return [
        *(name, "run", "--rm", *gpus, "--read-only", "--tmpfs", "/tmp:rw,exec,mode=1777", "--shm-size", "2g"),
        *("--user", f"{USER}:{USER}", "--volume", f"{CHECKOUT}:/checkout:ro", "--volume", f"{results}:/results"),
        *("--workdir", "/checkout", "--entrypoint", "python", IMAGE, "-m", "tests.bench.gpu_check"),
        *("--results", "/results", *arguments),
    ]


def main(arguments: Sequence[str]) -> int:
    """Build the image and run the check in it; the check's exit code."""
    name = engine()
    if "--available" in arguments:
        return 0 if name else 1
    if name is None:
        print(f"No container engine answers ({', '.join(ENGINES)}). Start one, or run it in .venv", file=sys.stderr)
        return 1
    print(f"In the trainer image, with {name}", flush=True)
    if (code := subprocess.run(build_command(name)).returncode) != 0:
        return code
    RESULTS.mkdir(parents=True, exist_ok=True)
    RESULTS.chmod(0o777)  # the container's user is nobody on this machine
    return subprocess.run(run_command(name, arguments)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
