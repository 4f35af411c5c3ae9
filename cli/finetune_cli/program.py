"""The program, and what its commands share. Each command imports what it needs when it runs, so help starts fast."""

from typing import Annotated, Any

import typer

from finetune_cli.completion import job_names
from finetune_cli.light import LightGroup, Program

app = Program(
    name="finetune",
    cls=LightGroup,
    help="Fine-tune language models on Kubernetes: run, watch and understand FineTuneJobs. docs/cli.md has examples.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(help="Name of the FineTuneJob.", autocompletion=job_names)]
Names = Annotated[list[str], typer.Argument(help="Names of FineTuneJobs.", autocompletion=job_names)]
AnyName = Annotated[
    str | None, typer.Argument(help="Name of a FineTuneJob. Without it: all.", autocompletion=job_names)
]
Setting = Annotated[list[str], typer.Option("--set", help="FIELD=VALUE for any field below spec; may be repeated.")]


def client_of(context: str | None, namespace: str | None) -> Any:
    """The client of a context of the kubeconfig."""
    from finetune_cli.cluster.client import client

    return client(context, namespace)
