"""The CRD takes nothing away from what an earlier CRD accepted (docs/upgrades.md, "What a release may change").

tests/golden/crd has the schemas of earlier releases, without descriptions and messages. Each release adds its own.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_api.crd import schema

from tests.unit.api.crd_changes import Schema, narrowed

EARLIER = sorted((Path(__file__).resolve().parents[2] / "golden" / "crd").glob("*.json"))

NEVER_WORKED = {
    # Decision 15: Kubernetes refuses it in a pod, or no pod can run with it. Defaults inside lists: decision 6.
    "b605ce9": re.compile(
        r"spec\.(resources|prepare|workspace)\b"
        r"|spec\.(secrets\.\w+|reporting\.\w+\.secret|ppo\.rewardModel\.http\.secret): the pattern"
        r"|spec\.(evaluation\.)?datasets\[\](\.source)?: the rule '?.*(columns\.images|configmap://)"
        r"|status(\.phase)?: the default was None"
    ),
}


HARMLESS = re.compile(
    r"spec\.training\.gradientCheckpointing: the default was True|status\.observedGeneration: the default was None"
    r"|status\.progress\.activity: the default was 'Training'"
)
"""Decision 27: its successor decides where it is unset, and the digest is the same. Decision 38: only a job that no
operator has seen gets the default of the status. Decision 48: every trainer writes the activity."""


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_what_a_release_accepted_is_accepted_still(path: Path) -> None:
    taken = list(narrowed(json.loads(path.read_text()), schema()))
    known = NEVER_WORKED.get(path.stem)
    assert [change for change in taken if not ((known and known.match(change)) or HARMLESS.match(change))] == []


def _training(root: Schema) -> Schema:
    section: Schema = root["properties"]["spec"]["properties"]["training"]
    return section


CHANGES: dict[str, Callable[[Schema], object]] = {
    "training.seed: the field is gone": lambda root: _training(root)["properties"].pop("seed"),
    "training.invented: it was not required": lambda root: _training(root).update(required=["invented"]),
    "training.seed: the default was 42": lambda root: _training(root)["properties"]["seed"].update(default=7),
    "training.seed: the type was integer": lambda root: _training(root)["properties"]["seed"].update(type="string"),
    "training.seed: minimum was 0": lambda root: _training(root)["properties"]["seed"].update(minimum=3),
    "stage: 'kto' was allowed": lambda root: root["properties"]["spec"]["properties"]["stage"]["enum"].remove("kto"),
    "model.source: the pattern was None": lambda root: root["properties"]["spec"]["properties"]["model"]["properties"][
        "source"
    ].update(pattern="^hf"),
    "training: the rule '!has(self.epochs) || self.seed > 1' is new": lambda root: _training(root)[
        "x-kubernetes-validations"
    ].append({"rule": "!has(self.epochs) || self.seed > 1"}),
    "training: the rule 'self.seed > 1' is new": lambda root: _training(root)["x-kubernetes-validations"].append(
        {"rule": "self.seed > 1"}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_narrowing_is_seen(change: str) -> None:
    later = copy.deepcopy(schema())
    CHANGES[change](later)
    assert list(narrowed(schema(), later)) == [f"spec.{change}"]


def test_a_rule_about_a_new_field_takes_nothing_away() -> None:
    """Unless it binds objects without the field, too."""
    for rule, narrows in (
        ("!has(self.invented) || self.seed > 1", False),
        ("!has(self.scheduler.invented) || self.seed > 1", False),
        ("self.invented >= oldSelf.invented", False),
        ("self.seed > 1 || self.invented == 1", True),
    ):
        later = copy.deepcopy(schema())
        _training(later)["properties"]["invented"] = {"type": "integer"}
        _training(later)["x-kubernetes-validations"].append({"rule": rule})
        assert bool(list(narrowed(schema(), later))) == narrows
