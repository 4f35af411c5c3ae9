"""``python -m tests.bench.gpu.pins``: the locked versions of all that `gpu_check` needs besides torch and its like.

For a machine that has torch, pyarrow and pandas, and nothing else of ours.
"""

import re
from collections.abc import Iterator
from pathlib import Path

LOCK = Path(__file__).resolve().parents[3] / "requirements" / "trainer.txt"
SMALL = (
    *("transformers", "tokenizers", "huggingface-hub", "safetensors", "trl", "peft", "accelerate", "datasets"),
    *("dill", "multiprocess", "xxhash", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    *("boto3", "botocore", "jmespath", "s3transfer", "zstandard", "jinja2", "markupsafe", "pyyaml"),
    *("httpx2", "httpcore2", "truststore"),
)


def pins() -> Iterator[str]:
    """name==version of each."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.M))
    for name in SMALL:
        yield f"{name}=={locked[name]}"


if __name__ == "__main__":
    print(*pins(), sep="\n")
