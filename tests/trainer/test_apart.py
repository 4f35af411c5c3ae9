"""Which models may pack: tried by their config, before anything is trained."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.prepare import apart

from tests.trainer import tiny

MIXED = {"num_hidden_layers": 16, "layer_types": ["full_attention", "conv"] * 8}


def of_type(folder: Path, model: Path, kind: str, **values: Any) -> Path:
    """A model with the config that the type has by itself: that of a published model, which is not small."""
    from transformers import AutoConfig

    shutil.copytree(model, folder)
    config = AutoConfig.for_model(kind, **values).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_attention_keeps_documents_apart(tmp_path: Path, model: Path) -> None:
    job = tiny.job(training={"packing": "bfd"})
    apart.check(job, model)
    for kind in ("qwen2", "gemma3_text"):
        apart.check(job, of_type(tmp_path / kind, model, kind))


@pytest.mark.parametrize(
    ("kind", "values"), [("bloom", {}), ("mpt", {}), ("mamba2", {}), ("lfm2", MIXED), ("qwen3_next", {}), ("bamba", {})]
)
def test_what_sees_more_than_attention_does_is_refused(
    tmp_path: Path, model: Path, kind: str, values: dict[str, Any]
) -> None:
    folder = of_type(tmp_path / kind, model, kind, **values)
    with pytest.raises(InvalidSpec, match=rf"training\.packing: models of type '{kind}' cannot keep.* use none"):
        apart.check(tiny.job(training={"packing": "bfd"}), folder)


def test_what_cannot_be_tried_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(apart, "LARGEST", 0)
    with caplog.at_level(logging.WARNING):
        apart.check(tiny.job(training={"packing": "bfd"}), model)
    assert "training.packing: whether the model keeps packed documents apart can't be tried" in caplog.text
