"""The adapter of a hub's model names its base as peft reads it, and is read back by its source."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.contract import ResolvedJob
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.fetch import Fetched
from finetune_trainer.model import build
from finetune_trainer.prepare import base_of_adapter
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from tests.trainer.model.test_adapters import Place, job, logits, run_of, write
from tests.trainer.support import tiny

HUB = "hf://me/base@main"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("models")
    folder = tiny.save_model(root / "me" / "base")
    return Place(root, folder, AutoTokenizer.from_pretrained(folder))


def artifact(place: Place, of: ResolvedJob, name: str, adapter: Path | None = None) -> tuple[Path, Any]:
    """The artifact, and the model that it has."""
    run = run_of(place, of, name, adapter)
    run = replace(run, prepared=replace(run.prepared, revisions={HUB: COMMIT}))
    torch.manual_seed(1)
    model: Any = build.build(of, place.model, adapter, place.tokens, "fp32", place.scratch)
    for key, weight in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.1)
    write(run, model, place.tokens)
    return run.folders.artifact, model


def config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def hub_job(**tuning: Any) -> ResolvedJob:
    return job({"method": "lora", "lora": {"rank": 4}, **tuning}, model={"source": HUB})


def test_peft_loads_the_adapter_with_its_base(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = artifact(place, hub_job(), "hub")
    assert (config(folder)["base_model_name_or_path"], config(folder)["revision"]) == ("me/base", COMMIT)
    monkeypatch.chdir(place.root)  # a folder me/base stands for the repository
    plain = AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    assert torch.allclose(logits(plain), logits(model), atol=1e-5)


def test_the_provenance_keeps_the_source(place: Place) -> None:
    folder, _ = artifact(place, hub_job(), "kept")
    assert json.loads((folder / "provenance.json").read_text())["job"]["model"]["source"] == HUB


def test_a_base_that_peft_cannot_load_alone_is_named_by_its_source(place: Place) -> None:
    earlier, _ = artifact(place, hub_job(), "earlier")
    merge = {"adapter": {"source": "pvc://models/earlier", "mode": "merge"}}
    for of, adapter, source in (
        (job({"method": "lora"}), None, "pvc://models/model"),
        (hub_job(**merge), earlier, HUB),
    ):
        folder, _ = artifact(place, of, f"own-{bool(adapter)}", adapter)
        assert (config(folder)["base_model_name_or_path"], config(folder)["revision"]) == (source, None)


@pytest.mark.parametrize(
    ("damage", "source"),
    [
        ([], HUB),
        (["provenance.json"], f"hf://me/base@{COMMIT}"),
    ],
    ids=["artifact", "adapter-alone"],
)
def test_an_artifact_is_read_back_by_its_source(place: Place, tmp_path: Path, damage: list[str], source: str) -> None:
    folder, _ = artifact(place, hub_job(), "read")
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in damage:
        (copy / name).unlink()

    def fetch(uri: str) -> Fetched:
        raise AssertionError(f"{uri} is not needed")

    adapter = Fetched("pvc://models/copy", copy, {}, None)
    of = referring("pvc://models/copy")
    with pytest.raises(InvalidSpec, match=re.escape(f"set dpo.reference.base to {source}")):
        base_of_adapter.uri(of, "reference", adapter, "dpo.reference", fetch)
    of = referring("pvc://models/copy", base=source)
    assert base_of_adapter.uri(of, "reference", adapter, "dpo.reference", fetch) == source
    if source == HUB:
        of = referring("pvc://models/copy", model={"source": HUB})
        assert base_of_adapter.uri(of, "reference", adapter, "dpo.reference", fetch) == HUB


@pytest.mark.parametrize("named", ["pvc://secrets/base", "s3://elsewhere/base", "hf://somebody/base", "/etc/base"])
@pytest.mark.parametrize("source", ["pvc://models/copy", "hf://somebody/adapter"])
def test_a_base_that_only_the_adapter_names_is_never_fetched(
    place: Place, tmp_path: Path, named: str, source: str
) -> None:
    folder, _ = artifact(place, hub_job(), "foreign")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "provenance.json").unlink()
    content = config(copy) | {"base_model_name_or_path": named, "revision": None}
    (copy / "adapter_config.json").write_text(json.dumps(content))

    def fetch(uri: str) -> Fetched:
        raise AssertionError(f"{uri} must not be fetched")

    of = referring(source)
    with pytest.raises(InvalidSpec, match=r"dpo\.reference\.base"):
        base_of_adapter.uri(of, "reference", Fetched(source, copy, {}, None), "dpo.reference", fetch)


def referring(source: str, **more: Any) -> ResolvedJob:
    """A job whose reference is an adapter."""
    model = {"model": more.pop("model")} if "model" in more else {}
    return tiny.job(stage="dpo", dpo={"reference": {"source": source, **more}}, datasets=[PAIRS], **model)


PAIRS = {"source": "pvc://data/pairs.jsonl", "format": "preference"}
