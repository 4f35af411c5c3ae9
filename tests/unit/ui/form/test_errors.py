"""Answers of the API server become messages at the fields."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.consistency import NO_QUEUE, PACKED, formats_message, section_message
from finetune_api.job import NAME_RULE
from finetune_api.training import LENGTH
from finetune_ui import form

UNCHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing"
    " errors to complete validation"
)
SUPPORTED = 'Unsupported value: "sfft": supported values: "pt", "sft", "rm", "dpo", "ppo", "kto"'
LABEL = "'^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$'"
RANK = "Invalid value: -1: spec.tuning.lora.rank in body should be greater than or equal to 1"


def status(*causes: tuple[str, str, str]) -> dict[str, Any]:
    """The Status of a job that the server refuses; causes are (reason, field, message)."""
    joined = ", ".join(f"{field}: {message}" for _, field, message in causes)
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f'FineTuneJob.finetune-operator.io "a" is invalid: {f"[{joined}]" if len(causes) > 1 else joined}',
        "reason": "Invalid",
        "details": {
            "name": "a",
            "group": "finetune-operator.io",
            "kind": "FineTuneJob",
            "causes": [{"reason": reason, "message": message, "field": field} for reason, field, message in causes],
        },
        "code": 422,
    }


CASES: dict[str, tuple[tuple[str, str, str], str, str]] = {
    "a value of a list": (
        ("FieldValueNotSupported", "spec.stage", SUPPORTED),
        "spec.stage",
        SUPPORTED,
    ),
    "a bound": (
        ("FieldValueInvalid", "spec.tuning.lora.rank", RANK),
        "spec.tuning.lora.rank",
        "-1: should be greater than or equal to 1",
    ),
    "a type": (
        (
            "FieldValueTypeInvalid",
            "spec.training.epochs",
            'Invalid value: "string": spec.training.epochs in body must be of type number: "string"',
        ),
        "spec.training.epochs",
        'must be of type number: "string"',
    ),
    "a missing field of a row": (
        ("FieldValueRequired", "spec.datasets[1].format", "Required value"),
        "spec.datasets[1].format",
        "Required value",
    ),
    "a long text": (
        ("FieldValueTooLong", "spec.model.fromJob", "Too long: may not be more than 40 bytes"),
        "spec.model.fromJob",
        "Too long: may not be more than 40 bytes",
    ),
    "many items": (
        ("FieldValueTooMany", "spec.tuning.lora.targets", "Too many: 65: must have at most 64 items"),
        "spec.tuning.lora.targets",
        "Too many: 65: must have at most 64 items",
    ),
    "an item of a list of texts": (
        (
            "FieldValueInvalid",
            "spec.tuning.lora.targets[0]",
            "Invalid value: \"a b\": spec.tuning.lora.targets[0] in body should match '^[A-Za-z0-9_.-]+$'",
        ),
        "spec.tuning.lora.targets",
        "\"a b\": should match '^[A-Za-z0-9_.-]+$'",
    ),
    "an entry of a map": (
        (
            "FieldValueInvalid",
            "spec.resources.podLabels.example.com/app",
            f'Invalid value: "-": spec.resources.podLabels.example.com/app in body should match {LABEL}',
        ),
        "spec.resources.podLabels",
        f'"-": should match {LABEL}',
    ),
    "below a box": (
        (
            "FieldValueRequired",
            "spec.resources.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
            "Required value",
        ),
        "spec.resources.affinity",
        "Required value",
    ),
    "a rule of a section": (
        ("FieldValueInvalid", "spec.training", f"Invalid value: {LENGTH}"),
        "spec.training",
        LENGTH,
    ),
    "a rule of a section, as older servers write it": (
        ("FieldValueInvalid", "spec.training", f'Invalid value: "object": {LENGTH}'),
        "spec.training",
        LENGTH,
    ),
    "a rule of the spec that names a field": (
        ("FieldValueInvalid", "spec", f"Invalid value: {PACKED}"),
        "spec.training.packing",
        PACKED,
    ),
    "a rule of the spec that names a field by one word": (
        ("FieldValueInvalid", "spec", f"Invalid value: {NO_QUEUE}"),
        "spec.queuePriorityClass",
        NO_QUEUE,
    ),
    "a rule of the spec that names the stage": (
        ("FieldValueInvalid", "spec", f"Invalid value: {formats_message('pt')}"),
        "spec.stage",
        formats_message("pt"),
    ),
    "the rule of the name": (
        ("FieldValueInvalid", "<nil>", f"Invalid value: {NAME_RULE['message']}"),
        "metadata.name",
        str(NAME_RULE["message"]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cause_is_shown_at_its_field(case: str) -> None:
    cause, path, message = CASES[case]
    assert form.errors(status(cause)) == form.Errors({path: message}, ())
    assert form.errors(status(cause)["message"]) == form.Errors({path: message}, ())


def test_several_causes_and_without_the_note_that_rules_were_not_checked() -> None:
    answer = status(
        ("FieldValueNotSupported", "spec.stage", SUPPORTED),
        ("FieldValueInvalid", "spec.tuning.lora.rank", RANK),
        ("FieldValueInvalid", "<nil>", UNCHECKED),
    )
    expected = {"spec.stage": SUPPORTED, "spec.tuning.lora.rank": "-1: should be greater than or equal to 1"}
    assert form.errors(answer) == form.Errors(expected, ())
    assert form.errors(answer["message"]) == form.Errors(expected, ())


def test_two_messages_of_one_field_are_both_shown() -> None:
    answer = status(
        ("FieldValueInvalid", "spec", f"Invalid value: {formats_message('pt')}"),
        ("FieldValueInvalid", "spec", f"Invalid value: {section_message('ppo')}"),
    )
    found = form.errors(answer)
    assert formats_message("pt") in found.fields["spec.stage"]
    assert section_message("ppo") in " ".join(found.fields.values())


def test_unknown_fields_are_named_at_the_section_around_them() -> None:
    message = (
        'FineTuneJob in version "v1alpha1" cannot be handled as a FineTuneJob: strict decoding error: unknown field'
        ' "spec.colour", unknown field "spec.training.lr"'
    )
    answer = {"kind": "Status", "status": "Failure", "message": message, "reason": "BadRequest", "code": 400}
    assert form.errors(answer) == form.Errors(
        {"spec.training": 'unknown field "spec.training.lr"'}, ('spec.colour: unknown field "spec.colour"',)
    )


@pytest.mark.parametrize(
    "message",
    [
        'finetunejobs.finetune-operator.io is forbidden: User "a" cannot create resource "finetunejobs" in API group'
        ' "finetune-operator.io" in the namespace "b"',
        'finetunejobs.finetune-operator.io "a" already exists',
        "the server was unable to return a response in the time allotted",
    ],
)
def test_a_message_about_no_field_is_kept_whole(message: str) -> None:
    assert form.errors({"kind": "Status", "message": message}) == form.Errors({}, (message,))
    assert form.errors(message) == form.Errors({}, (message,))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"details": None},
        {"details": {"causes": "text"}},
        {"details": {"causes": [None, 1, {}, {"message": ""}]}},
        {"message": 7, "details": {"causes": [{"message": ["x"], "field": {"a": 1}}]}},
        "",
        "is invalid: ",
        " is invalid: [spec.stage: Required value",
        "x" * 100_000,
        "a is invalid: spec.x: Invalid value: " + "spec" * 100_000,
        "a is invalid: spec.x: Invalid value: " + "[" * 100_000,
        "[" * 50_000,
    ],
)
def test_an_answer_that_no_server_sends_raises_nothing(answer: Any) -> None:
    assert isinstance(form.errors(answer), form.Errors)
