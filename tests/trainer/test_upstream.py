"""What we override in TRL and transformers is what `stages.upstream` says, and they still look as they did."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.stages import upstream
from finetune_trainer.stages.engine import Engine
from finetune_trainer.stages.sft import workflow
from finetune_trainer.stages.sft.trainer import SftTrainer

from tests.trainer import tiny


def resolve(name: str) -> Any:
    """The object behind a dotted name of module and attributes."""
    module, _, rest = name.rpartition(".")
    try:
        return getattr(import_module(module), rest)
    except ModuleNotFoundError:
        return getattr(resolve(module), rest)


def signature(function: Any) -> str:
    plain = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in plain.parameters.values()]
    return str(plain.replace(parameters=bare, return_annotation=inspect.Signature.empty))


LISTED = [(owner, name, text) for owner, members in upstream.OVERRIDDEN.items() for name, text in members.items()]


@pytest.mark.parametrize(("owner", "name", "text"), LISTED, ids=[f"{o.rpartition('.')[2]}.{n}" for o, n, _ in LISTED])
def test_an_overridden_member_looks_as_it_did(owner: str, name: str, text: str) -> None:
    cls = resolve(owner)
    assert name in vars(cls), f"{owner} has no {name} of its own any more"
    assert signature(vars(cls)[name]) == text


@pytest.mark.parametrize(("name", "text"), upstream.USED.items())
def test_a_function_built_upon_looks_as_it_did(name: str, text: str) -> None:
    assert signature(resolve(name)) == text


def test_everything_overridden_is_listed() -> None:
    ours = (SftTrainer, Engine)
    theirs = [cls for cls in SftTrainer.__mro__ if cls not in ours]
    for cls in ours:
        for name, member in vars(cls).items():
            if not inspect.isfunction(member):
                continue
            owner = next((t for t in theirs if name in vars(t)), None)
            if owner is not None:
                assert name in upstream.OVERRIDDEN[f"{owner.__module__}.{owner.__name__}"]


def test_trl_never_prepares_the_data(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _, name = upstream.NEVER_ENTERED.rpartition(".")
    monkeypatch.setattr(resolve(owner), name, lambda *_, **__: pytest.fail("TRL prepares data that is ready"))
    assert workflow.run(tiny.make_run(root, tiny.job(training={"maxSteps": 1}))).artifact.size_bytes > 0
