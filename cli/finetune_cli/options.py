"""Options that many commands have."""

from typing import Annotated

import typer

from finetune_cli.output import Format

Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace. Default: that of the kubeconfig's context."),
]
Context = Annotated[
    str | None, typer.Option("--context", help="Context of the kubeconfig. Default: the current context.")
]
Output = Annotated[Format | None, typer.Option("--output", "-o", help="Print for programs: json, yaml or name.")]
Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of all namespaces.")]
Selector = Annotated[str, typer.Option("--selector", "-l", help="Labels of the jobs, such as team=nlp.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most. 0: no limit.")]
Patience = Annotated[float, typer.Option("--timeout", help="Seconds that the pod may take to start.")]
Queue = Annotated[
    str | None, typer.Option(help="Queue of Kueue for the pod, where Kueue manages pods. Default: as the job says.")
]
"""Of commands that run a pod."""
