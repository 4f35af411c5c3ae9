"""`finetune ui`: the web page on this machine, for whoever runs the command."""

import importlib
from typing import Annotated, Any

import typer

from finetune_cli.options import Context, Namespace
from finetune_cli.problem import Problem
from finetune_cli.program import app

PACKAGE = "finetune_ui"


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1. 0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show the jobs in a browser until Ctrl-C. It acts with the rights of your kubeconfig."""
    from finetune_cli.cluster.kubeconfig import load

    _server().on_laptop(load(context, namespace), port, browser)


def _server() -> Any:
    """The module of the other package that serves the page. It is named here as a text, because that package depends
    on this package."""
    try:
        return importlib.import_module(f"{PACKAGE}.serve")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise Problem(
            f"The page needs the Python package {missing}, which is not installed: pip install ./ui (in a checkout"
            " of finetune-operator)"
        ) from error
