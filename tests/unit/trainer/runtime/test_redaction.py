"""Secrets are removed from every text that leaves a pod, however they are written and wherever the text is split."""

import base64
import io
import itertools
import os
import sys
from urllib.parse import quote

import pytest
from finetune_trainer.launcher.last_words import LastWords
from finetune_trainer.runtime import redaction
from finetune_trainer.runtime.redaction import MASK, NAMES, Redactor, secrets
from hypothesis import given
from hypothesis import strategies as st

TOKEN, KEY = "canary/+token?7f3a&", "a canary\nof two lines"
ENVIRONMENT = {"HF_TOKEN": TOKEN, "TEAM_KEY": KEY, NAMES: "HF_TOKEN,TEAM_KEY", "HOME": "/tmp/home"}
WRITTEN = [TOKEN, quote(TOKEN, safe=""), base64.b64encode(TOKEN.encode()).decode(), *KEY.splitlines(), repr(KEY)[1:-1]]


@given(
    parts=st.lists(st.one_of(st.sampled_from(WRITTEN), st.text(max_size=5), st.just(TOKEN[:7])), max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_no_secret_passes_in_any_form_and_however_it_is_split(parts: list[str], cuts: list[int]) -> None:
    text, redactor = " ".join(parts), Redactor(secrets(ENVIRONMENT))
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    passed = "".join(redactor.feed(text[a:b]) for a, b in itertools.pairwise(places)) + redactor.end()
    for written in WRITTEN:
        assert written not in passed
    assert len([part for part in parts if part in WRITTEN]) <= passed.count(MASK)


def test_what_is_no_secret_is_not_touched() -> None:
    text = (
        "HF_TOKEN is not accepted: https://hub.example answers 401 on the basis of /tmp/home. Basic training continues"
    )
    redactor = Redactor(secrets({**ENVIRONMENT, "AWS_REGION": "eu-west-1", "MLFLOW_TRACKING_TOKEN": "ann"}))
    assert redactor.feed(text) + redactor.end() == text


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_what_follows_the_scheme_of_a_header_is_a_secret_whatever_it_is(scheme: str) -> None:
    """The token of the pod's own account is in a file, and no variable has it."""
    text = f"Invalid header value b'{scheme} eyJhbGciOiJSUzI1NiIsImtpZCI6'"
    assert Redactor(frozenset()).redact(text) == f"Invalid header value b'{scheme} {MASK}'"


def test_the_password_of_a_url_is_one_too() -> None:
    found = Redactor(secrets({"AWS_ENDPOINT_URL": "http://ann:opensesame@s3.example:9000"}))
    assert found.redact("http://ann:opensesame@s3.example:9000") == f"http://ann:{MASK}@s3.example:9000"


def test_what_a_rank_writes_is_copied_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    rank, launcher = os.pipe(), os.pipe()
    words = LastWords(os.fdopen(rank[0], "rb"), launcher[1])
    for piece in (b"the token is canary/", b"+token?7f3a&.\nWei\xc3", b"\x9f\xff canar"):
        os.write(rank[1], piece)
    os.close(rank[1])
    expected = f"the token is {MASK}.\nWeiß\\xff canar"
    assert words.text() == expected
    assert os.read(launcher[0], 1000).decode() == expected


def test_what_the_launcher_prints_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-wandb")
    written = io.StringIO()
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stderr", written)
    redaction.install()
    print("API key canary-of-wandb is wrong", file=sys.stderr)
    assert written.getvalue() == f"API key {MASK} is wrong\n"
