"""`upstream` lists everything that we override in transformers, with the signatures of the installed versions."""

import inspect
from importlib import import_module
from typing import Any

import pytest
from finetune_trainer.stages.dpo.trainer import DpoTrainer
from finetune_trainer.stages.kto.trainer import KtoTrainer
from finetune_trainer.stages.ppo.trainer import PpoTrainer
from finetune_trainer.stages.rm.trainer import RmTrainer
from finetune_trainer.stages.sft.trainer import SftTrainer
from finetune_trainer.training import upstream
from finetune_trainer.training.trainer import BaseTrainer


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
def test_an_overridden_member_has_its_recorded_signature(owner: str, name: str, text: str) -> None:
    cls = resolve(owner)
    assert name in vars(cls), f"{owner} has no {name} of its own any more"
    assert signature(vars(cls)[name]) == text


@pytest.mark.parametrize(("name", "text"), upstream.USED.items())
def test_a_used_function_has_its_recorded_signature(name: str, text: str) -> None:
    assert signature(resolve(name)) == text


def test_everything_overridden_is_listed() -> None:
    stages = (SftTrainer, RmTrainer, DpoTrainer, KtoTrainer, PpoTrainer)
    ours = (*stages, BaseTrainer)
    theirs = BaseTrainer.__mro__[1:]
    for cls in ours:
        for name, member in vars(cls).items():
            if not inspect.isfunction(member):
                continue
            owner = next((t for t in theirs if name in vars(t)), None)
            if owner is not None:
                assert name in upstream.OVERRIDDEN[f"{owner.__module__}.{owner.__name__}"]
