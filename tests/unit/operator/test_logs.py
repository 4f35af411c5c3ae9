"""The log as JSON: one object per line, with the job that it is about."""

from __future__ import annotations

import json
import logging

import pytest
from finetune_operator import logs


@pytest.fixture
def record() -> logging.LogRecord:
    try:
        raise ValueError("no\nnumber")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    return logging.LogRecord("finetune_operator.x", logging.WARNING, "x.py", 1, "%s is %s", ("a", '"b"\n'), info)


def test_a_line_is_an_object_with_the_jobs_key(record: logging.LogRecord) -> None:
    token = logs.current_job.set(("team", "demo"))
    try:
        text = logs.JsonFormatter().format(record)
    finally:
        logs.current_job.reset(token)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["namespace"], line["name"], line["level"]) == ("team", "demo", "warning")
    assert (line["logger"], line["message"]) == ("finetune_operator.x", 'a is "b"\n')
    assert "ValueError" in line["exception"]
    assert line["time"].endswith("Z")


def test_a_line_about_no_job_names_none(record: logging.LogRecord) -> None:
    line = json.loads(logs.JsonFormatter().format(record))
    assert not {"namespace", "name"} & set(line)
