"""The presets of a namespace: what a text may say, what it fills in, and what it does not allow."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api import presets
from finetune_api.presets import Bounds, Defaults, Presets, allows, excesses, fill, filled_in
from finetune_api.spec import FineTuneJobSpec
from hypothesis import given, settings
from hypothesis import strategies as st

SPEC: dict[str, Any] = {
    "stage": "sft",
    "model": {"source": "hf://org/base@main"},
    "datasets": [{"source": "pvc://models/data/train.jsonl", "format": "openai"}],
    "training": {"epochs": 1},
    "workspace": {"claimName": "work"},
}
DOCS = Path(__file__).resolve().parents[3] / "docs" / "presets.md"


def spec(**sections: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate({**SPEC, **sections})


def text(**sections: Any) -> str:
    return yaml.safe_dump(sections)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (text(default={}), "unknown field default"),
        (text(defaults={"imagee": "a"}), "unknown field defaults.imagee"),
        (text(bounds={"gpus": "many"}), "bounds.gpus: "),
        (text(bounds={"gpus": -1}), "bounds.gpus: "),
        (text(bounds={"cpu": "fast"}), "bounds.cpu: "),
        (text(bounds={"memory": "64"}), "bounds.memory: 64 bytes; write 64Gi"),
        (text(bounds={"images": "one"}), "bounds.images: "),
        (text(bounds={"images": [""]}), "bounds.images.0: "),
        (text(bounds={"devices": {"cpu": 1}}), "bounds.devices: cpu: must be an extended resource"),
        (text(defaults={"podLabels": {"finetune-operator.io/job": "x"}}), "belong to the operator and to Kubernetes"),
        (text(defaults={"podLabels": {"kueue.x-k8s.io/queue-name": "x"}}), "belong to the operator and to Kubernetes"),
        (text(defaults={"podAnnotations": {"finetune-operator.io/resolved-job": "{}"}}), "belong to the operator"),
        (text(defaults={"tolerations": [{"operator": "Equal"}]}), "a toleration without key needs operator Exists"),
        (text(defaults={"image": "a b"}), "defaults.image: "),
        (
            text(defaults={"image": "evil.example/x:1"}, bounds={"images": ["registry.example/"]}),
            "defaults.image is evil.example/x:1, which bounds.images does not allow",
        ),
        (text(defaults={"queue": "a b"}), "defaults.queue: "),
        (text(bounds={"queues": ["a/b"]}), "bounds.queues.0: "),
        (text(defaults={"queue": "x"}, bounds={"queues": ["team"]}), "defaults.queue is x, which bounds.queues does"),
        (text(defaults={"prepareQueue": "x"}, bounds={"queues": []}), "defaults.prepareQueue is x, which bounds."),
        (text(defaults={"cpuLimit": "8"}, bounds={"cpu": "4"}), "defaults.cpuLimit is 8, but bounds.cpu is 4"),
        ("a: [", "no YAML: expected the node content, but found '<stream end>' at line 1, column 5"),
        ("\0", "no YAML: unacceptable character #x0000"),
        ("bounds: {gpus: 8}\nbounds:\n  memory: 1Gi\n", "the key bounds is there twice at line 2, column 1"),
        ("bounds: {gpus: 1, memory: 1Gi, gpus: 64}", "the key gpus is there twice at line 1, column 32"),
        ("[" * 4000, "too many levels of brackets"),
        ("- a list", "valid dictionary"),
        ("!!python/object/apply:os.system [echo]", "no YAML: "),
        ("bounds: {gpus: 2026-99-99}", "no YAML: month must be in 1..12"),
        ("# " + "x" * 9000, "more than 8192 bytes"),
    ],
)
def test_a_mistake_is_named(wrong: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        presets.read(wrong)


def test_a_merged_map_may_have_the_key_of_another() -> None:
    text = "defaults:\n  nodeSelector: &a {pool: gpu, zone: a}\n  podLabels: {<<: *a, zone: b}\n"
    assert presets.read(text).defaults.pod_labels == {"pool": "gpu", "zone": "b"}


@pytest.mark.parametrize("empty", ["", "# nothing yet", "defaults:\nbounds:\n", "{}"])
def test_a_text_without_values_sets_nothing(empty: str) -> None:
    assert presets.read(empty) == Presets()


@settings(deadline=None, database=None)
@given(st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(yaml.safe_dump))
def test_any_text_is_read_or_refused(anything: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(presets.read(anything), Presets)


@settings(deadline=None, database=None)
@given(
    st.sampled_from(["defaults", "bounds"]),
    st.dictionaries(
        st.sampled_from([*Defaults.model_json_schema()["properties"], *Bounds.model_json_schema()["properties"]]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=3),
    ),
)
def test_any_values_are_read_or_refused(section: str, values: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        found = presets.read(yaml.safe_dump({section: values}))
        assert all(excesses(found.bounds, spec()))
        assert isinstance(fill(found.defaults, SPEC), dict)


DEFAULTS = Defaults.model_validate(
    {
        "image": "registry.example/trainer:2",
        "cpuLimit": "8",
        "nodeSelector": {"pool": "gpu", "zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "podLabels": {"team": "nlp"},
        "podAnnotations": {"note": "n"},
        "priorityClassName": "batch",
        "queue": "team",
        "prepareQueue": "cpus",
        "ttlSecondsAfterFinished": 0,
    }
)


def test_everything_that_a_job_leaves_out_is_filled_in() -> None:
    parts = fill(DEFAULTS, SPEC)
    assert parts == {
        "queue": "team",
        "ttlSecondsAfterFinished": 0,
        "resources": {
            "image": "registry.example/trainer:2",
            "cpuLimit": "8",
            "nodeSelector": {"pool": "gpu", "zone": "a"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "podLabels": {"team": "nlp"},
            "podAnnotations": {"note": "n"},
            "priorityClassName": "batch",
        },
        "prepare": {"cpuLimit": "8", "queue": "cpus"},
    }
    filled = FineTuneJobSpec.model_validate(filled_in(SPEC, parts))
    assert filled.resources.image == "registry.example/trainer:2"
    assert (filled.queue, filled.prepare.queue) == ("team", "cpus")
    assert fill(Defaults(), SPEC) == {}


def test_what_a_job_sets_stays() -> None:
    own = {
        **SPEC,
        "ttlSecondsAfterFinished": 60,
        "queue": "own",
        "resources": {
            "cpu": "16",
            "image": "registry.example/own:1",
            "nodeSelector": {"pool": "big"},
            "tolerations": [],
            "podLabels": {"team": "vision", "mine": "1"},
            "priorityClassName": "urgent",
        },
        "prepare": {"cpuLimit": "3", "queue": "own"},
    }
    parts = fill(DEFAULTS, own)
    assert parts == {
        # The limit of a pod is at least its request.
        "resources": {"cpuLimit": "16", "nodeSelector": {"zone": "a"}, "podAnnotations": {"note": "n"}}
    }
    merged = filled_in(own, parts)
    assert merged["resources"]["nodeSelector"] == {"pool": "big", "zone": "a"}
    assert merged["resources"]["podLabels"] == {"team": "vision", "mine": "1"}
    assert FineTuneJobSpec.model_validate(merged).resources.cpu_limit == "16"


@pytest.mark.parametrize(
    ("bounds", "asked", "words"),
    [
        ({"nodes": 1}, {"resources": {"nodes": 2}}, "spec.resources.nodes is 2, and at most 1 is allowed"),
        ({"gpusPerNode": 4}, {"resources": {"gpusPerNode": 8}}, "spec.resources.gpusPerNode is 8, and at most 4"),
        ({"gpus": 8}, {"resources": {"nodes": 2, "gpusPerNode": 8}}, "gpusPerNode is 16, and at most 8"),
        ({"gpus": 0}, {}, "is 1, and at most 0 is allowed (bounds.gpus)"),
        ({"cpu": "3500m"}, {}, "spec.resources.cpu is 4, and at most 3500m is allowed (bounds.cpu)"),
        ({"cpu": "4"}, {"resources": {"cpuLimit": "5"}}, "spec.resources.cpuLimit is 5"),
        ({"cpu": "4"}, {"prepare": {"cpu": "6"}}, "spec.prepare.cpu is 6"),
        ({"cpu": "4"}, {"prepare": {"cpuLimit": "6"}}, "spec.prepare.cpuLimit is 6"),
        ({"memory": "15Gi"}, {}, "spec.resources.memory is 16Gi, and at most 15Gi is allowed (bounds.memory)"),
        ({"memory": "16Gi"}, {"prepare": {"memory": "17G"}}, ""),
        ({"memory": "16Gi"}, {"prepare": {"memory": "18G"}}, "spec.prepare.memory is 18G"),
        ({"images": ["registry.example/"]}, {}, ""),
        ({"images": ["registry.example/"]}, {"resources": {"image": "evil.example/x"}}, "spec.resources.image is evil"),
        ({"images": []}, {"resources": {"image": "evil.example/x"}}, "and none is allowed (bounds.images)"),
        ({"sources": ["pvc://", "hf://org"]}, {}, ""),
        ({"sources": ["pvc://"]}, {}, "spec.model.source is hf://org/base@main, and only pvc:// is allowed"),
        ({"sources": ["hf://"]}, {}, "spec.datasets[0].source is pvc://models/data/train.jsonl"),
        ({"queues": ["team"]}, {"queue": "team", "prepare": {"queue": "team"}}, ""),
        ({"queues": ["team"]}, {}, ""),
        ({"queues": ["team"]}, {"queue": "team-b"}, "spec.queue is team-b, and only team is allowed (bounds.queues)"),
        ({"queues": ["team"]}, {"prepare": {"queue": "b"}}, "spec.prepare.queue is b, and only team is allowed"),
        ({"queues": []}, {"queue": "b"}, "spec.queue is b, and none is allowed (bounds.queues)"),
        ({"devices": {"rdma/hca": 1}}, {"resources": {"devices": {"rdma/hca": 2}}}, "devices of rdma/hca is 2"),
        ({"devices": {"rdma/hca": 1}}, {"resources": {"devices": {"rdma/hca": 1}}}, ""),
        ({"gpus": 1}, {"resources": {"devices": {"nvidia.com/mig-1g.5gb": 4}}}, "mig-1g.5gb is 4, and at most 0"),
        ({"memory": "1Ti"}, {"resources": {"devices": {"rdma/hca": 2}}}, ""),
        (
            {"trustRemoteCode": False},
            {"model": {"source": "pvc://models/base", "trustRemoteCode": True}},
            "spec.model.trustRemoteCode is true",
        ),
        ({"trustRemoteCode": True}, {"model": {"source": "pvc://models/base", "trustRemoteCode": True}}, ""),
    ],
    ids=str,
)
def test_what_exceeds_a_bound_is_named_with_value_and_bound(
    bounds: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    found = list(excesses(Bounds.model_validate(bounds), spec(**asked)))
    assert len(found) == bool(words), found
    assert not words or words in found[0]


def test_every_source_of_a_job_is_compared() -> None:
    ppo = spec(
        stage="ppo",
        model={"source": "hf://a/model@main"},
        evaluation={"datasets": [{"source": "s3://held-out/rows", "format": "openai"}]},
        tuning={"adapter": {"source": "hf://a/adapter", "mode": "merge"}},
        ppo={
            "rewardModel": {"source": "hf://a/reward", "base": "hf://a/reward-base"},
            "reference": {"source": "hf://a/reference", "base": "hf://a/reference-base"},
        },
    )
    assert dict(presets.sources(ppo)) == {
        "model.source": "hf://a/model@main",
        "tuning.adapter.source": "hf://a/adapter",
        "ppo.reference.source": "hf://a/reference",
        "ppo.reference.base": "hf://a/reference-base",
        "ppo.rewardModel.source": "hf://a/reward",
        "ppo.rewardModel.base": "hf://a/reward-base",
        "datasets[0].source": "pvc://models/data/train.jsonl",
        "evaluation.datasets[0].source": "s3://held-out/rows",
    }
    dpo = spec(
        stage="dpo",
        dpo={"reference": {"source": "hf://a/reference"}},
        datasets=[{"source": "configmap://rows/a.jsonl", "format": "preference"}],
    )
    assert ("dpo.reference.source", "hf://a/reference") in presets.sources(dpo)


@pytest.mark.parametrize(
    ("entry", "value", "allowed"),
    [
        ("registry.example/", "registry.example/a/b:1", True),
        ("registry.example/", "registry.example.evil/a:1", False),
        ("registry.example/team", "registry.example/team/x:1", True),
        ("registry.example/team", "registry.example/team2/x:1", False),
        ("registry.example/team/x", "registry.example/team/x:1", True),
        ("registry.example/team/x", "registry.example/team/x@sha256:0", True),
        ("registry.example/team/x:1", "registry.example/team/x:1", True),
        ("registry.example/team/x:1", "registry.example/team/x:10", False),
        ("hf://", "hf://any/model", True),
        ("hf://org", "hf://org/model@main", True),
        ("hf://org", "hf://organisation/model", False),
        ("hf://org/model", "hf://org/model@main", True),
        ("s3://bucket/a", "s3://bucket/ab", False),
        ("pvc://models", "pvc://models/base", True),
    ],
)
def test_an_entry_ends_at_a_border(entry: str, value: str, allowed: bool) -> None:
    assert allows([entry], value) == allowed


def test_every_field_is_explained() -> None:
    told = DOCS.read_text()
    for model, section in ((Defaults, "defaults"), (Bounds, "bounds")):
        for field in model.model_json_schema()["properties"]:
            assert f"`{section}.{field}`" in told, f"docs/presets.md does not explain {section}.{field}"


def test_a_number_that_is_no_quantity_is_refused() -> None:
    """Another release may let it pass; what cannot be compared is not within a bound."""
    odd = FineTuneJobSpec.read({**SPEC, "resources": {"memory": "16Xi"}})
    assert list(excesses(Bounds(memory="1Ti"), odd))
