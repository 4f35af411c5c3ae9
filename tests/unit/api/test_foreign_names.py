"""Names of other trainers lead to the one field that fits."""

import re

import pytest
from finetune_api.foreign_names import NAMES, field_for, spec_fields, use_instead

from tests.unit.api.test_llamafactory import rows

OTHER_MEANING = {
    "max_length": "there it limits answers of ppo, and in TRL whole rows",
    "dataset_info.json": "a file",
    "history": "a column, and a setting of the template",
    "max_new_tokens": "a setting of ppo, and of evaluations",
    "system": "a column, and a tag",
}
"""Arguments of LLaMA-Factory whose names mean something else to most people."""


def test_every_name_leads_to_a_field() -> None:
    assert "training.epochs" in NAMES
    assert not sorted(set(NAMES) - set(spec_fields()) - {f for f in NAMES if f.startswith("resources.")})


def test_no_name_leads_to_two_fields() -> None:
    names = [re.sub(r"_", "", name) for words in NAMES.values() for name in words.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("num_train_epochs", "training.epochs"),
        ("numTrainEpochs", "training.epochs"),
        ("lora_r", "tuning.lora.rank"),
        ("max_seq_length", "training.cutoffLength"),
        ("sequence_len", "training.cutoffLength"),
        ("per_device_train_batch_size", "training.microBatchSize"),
        ("learning_rate", "training.learningRate"),
        ("rank", "tuning.lora.rank"),
        ("epochs", None),
        ("surprise", None),
    ],
)
def test_a_name_means_a_field(name: str, field: str | None) -> None:
    assert field_for(name) == field


def test_every_argument_of_llama_factory_leads_to_the_field_of_the_documentation() -> None:
    wrong = {}
    for names, fields in rows():
        for name in names:
            found = field_for(name)
            fits = found and any(
                f"{field}.".startswith(f"{found}.") or found.startswith(f"{field}.") for field in fields
            )
            if fields and "*" not in name and ":" not in name and name not in OTHER_MEANING and not fits:
                wrong[name] = found
    assert not wrong


def test_a_field_of_held_out_data_is_named_where_it_is() -> None:
    assert use_instead(("spec", "evaluation", "datasets", 0, "role_tag")) == "spec.evaluation.datasets.tags.role"
    assert use_instead(("spec", "datasets", 0, "role_tag")) == "spec.datasets.tags.role"
    assert use_instead(("metadata", "role_tag")) is None
