"""docs/serving.md against the names of vLLM and KServe, which tests/golden/serving.json has with their sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docsite.pages import Block, blocks, commands

KNOWN: dict[str, Any] = json.loads(Path("tests/golden/serving.json").read_text())
PAGE = Path("docs/serving.md")
KINDS = {str: "string", int: "integer", bool: "boolean", list: "array", dict: "object"}


def manifests() -> list[dict[str, Any]]:
    own: list[Block] = [block for block in blocks("yaml") if block.page == PAGE]
    return [document for block in own for document in yaml.safe_load_all(block.text)]


KSERVE = [each for each in manifests() if each["apiVersion"].startswith("serving.kserve.io/")]


def problems(value: Any, known: Any, path: str) -> list[str]:
    """Fields that the schema does not have, or has with another type."""
    if known == "any":
        return []
    if isinstance(known, list):
        return [text for number, each in enumerate(value) for text in problems(each, known[0], f"{path}[{number}]")]
    if isinstance(known, str):
        return [] if KINDS[type(value)] == known else [f"{path} is no {known}"]
    unknown = [f"{path}.{name} is unknown" for name in value if name not in known]
    return unknown + [
        text for name in value if name in known for text in problems(value[name], known[name], f"{path}.{name}")
    ]


@pytest.mark.parametrize("manifest", KSERVE, ids=lambda each: each["kind"])
def test_manifests_have_the_fields_of_kserve(manifest: dict[str, Any]) -> None:
    schema = KNOWN["kserve"]["fields"][f"{manifest['apiVersion']} {manifest['kind']}"]
    assert problems(manifest["spec"], schema, "spec") == []


def test_both_kinds_are_shown() -> None:
    assert {each["kind"] for each in KSERVE} == {"InferenceService", "LLMInferenceService"}


def test_an_unknown_field_is_found() -> None:
    schema = KNOWN["kserve"]["fields"]["serving.kserve.io/v1beta1 InferenceService"]
    assert problems({"predictor": {"model": {"storageURI": "pvc://a"}}}, schema, "spec") == [
        "spec.predictor.model.storageURI is unknown"
    ]


def test_arguments_are_those_of_vllm_and_of_the_runtime() -> None:
    called = [word for _, words in commands() if words[:2] == ["vllm", "serve"] for word in words]
    deployment = next(each for each in manifests() if each["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][:2] == ["vllm", "serve"]
    called += container["command"] + container["args"]
    given = {word.partition("=")[0] for word in called if word.startswith("--")}
    assert {"--enable-lora", "--lora-modules"} <= given <= set(KNOWN["vllm"]["arguments"])
    assert not given & set(KNOWN["vllm"]["deprecated"])
    runtime = next(each for each in KSERVE if each["kind"] == "InferenceService")["spec"]["predictor"]["model"]["args"]
    assert {word.partition("=")[0] for word in runtime} <= set(KNOWN["kserve"]["arguments"])


def test_the_list_is_whole_and_an_argument_that_does_not_exist_is_missing() -> None:
    known = set(KNOWN["vllm"]["arguments"])
    assert {"--model", "--port", "--tensor-parallel-size", "--chat-template", "--enable-log-requests"} <= known
    assert "--max-lora-ranks" not in known
    assert "0.33.0" in KNOWN["vllm"]["source"]
    assert "vLLM 0.33.0" in PAGE.read_text(encoding="utf-8")


def test_the_ranks_are_those_of_vllm() -> None:
    told = re.search(r"`--max-lora-rank` takes ([\d, ]+ or \d+)", PAGE.read_text(encoding="utf-8"))
    assert told is not None
    assert [int(number) for number in re.findall(r"\d+", told[1])] == KNOWN["vllm"]["max_lora_rank"]
