"""Commands that start fast: what an option has already, nobody converts.

typer converts each value by pydantic, also None and texts. To import pydantic takes longer than all else that help,
completion and a short command do. So a value that has its type already, or is empty, is taken as it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandFunctionType


class LightCommand(TyperCommand):
    """A command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """typer adds options until then."""
        _lighten(self.get_params(ctx))
        return super().parse_args(ctx, args)


class LightGroup(TyperGroup):
    """The program, which has options of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """typer adds options until then."""
        _lighten(self.get_params(ctx))
        return super().parse_args(ctx, args)


class Program(typer.Typer):
    """A program whose commands are light."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """A decorator, as that of typer."""
        return super().command(name, cls=LightCommand, **more)


def _lighten(params: list[Any]) -> None:
    for param in params:
        if "process_value" in vars(param):
            continue  # a program that runs several commands
        param.process_value = partial(_process, param, param.process_value)


def _process(param: Any, convert: Any, ctx: Any, value: Any) -> Any:
    several = param.multiple or param.nargs == -1
    if value is None or value == () or value == []:
        if param.required and not ctx.resilient_parsing:
            return convert(ctx, value)  # which says what is missing
        value = [] if several else None
    elif not _fits(value, getattr(getattr(param, "type_descriptor", None), "annotation", None), several):
        return convert(ctx, value)
    return param.callback(ctx, param, value) if param.callback else value


def _fits(value: Any, annotation: Any, several: bool) -> bool:
    """Whether a value has its type already. Of lists, only those of texts are known."""
    if several:
        return annotation == list[str] and all(type(each) is str for each in value)
    return type(value) is annotation or (annotation is float and type(value) is int)
