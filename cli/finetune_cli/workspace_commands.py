"""The commands that read the workspace of a job, in a pod: fetch, report, ask, plot."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from finetune_cli.options import Context, Namespace, Output, Patience, Queue
from finetune_cli.problem import Problem
from finetune_cli.program import Name, Names, app, client_of

PATIENCE = 600.0
"""The image has gigabytes, and a node that has never had it pulls it first."""


@app.command()
def fetch(
    name: Name,
    folder: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder to create. Default: the name of the job, here.")
    ] = None,
    queue: Queue = None,
    timeout: Patience = PATIENCE,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Copy the artifact of a job to a folder, and check its digest.

    The folder appears when everything is there. A call that was interrupted continues where it was.
    """
    from finetune_cli import jobs
    from finetune_cli.workspace import fetch as copy

    client = client_of(context, namespace)
    job = jobs.get(client, name)
    target = copy.fetch(client, job, folder, queue, timeout)
    artifact = copy.artifact_of(job)
    size = copy.gigabytes(artifact["sizeBytes"])
    typer.echo(f"{target}: {artifact['kind']}, {size}, digest {artifact['digest']}. README.md says how to load it.")


@app.command()
def report(
    name: Name,
    rows: Annotated[bool, typer.Option("--rows", help="Print every broken row instead, as lines of JSON.")] = False,
    queue: Queue = None,
    timeout: Patience = PATIENCE,
    namespace: Namespace = None,
    context: Context = None,
    output: Output = None,
) -> None:
    """Print what preparing found in the data. The report also has the first row as the model sees it."""
    import json

    from finetune_cli import jobs, views
    from finetune_cli.workspace import report as reports

    client = client_of(context, namespace)
    job = jobs.get(client, name)
    text = reports.data_report(client, job, "rows" if rows else "json" if output else "text", queue, timeout)
    if output and not rows:
        views.show_data(json.loads(text), output)
    else:
        print(text, end="" if text.endswith("\n") else "\n")


@app.command()
def ask(
    name: Name,
    questions: Annotated[list[str] | None, typer.Argument(help="Questions. Without any: see --file.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A file with a question on each line. -: standard input.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the model as it was before the training.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 512,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the pod, such as 32Gi. Default: that of the job's pods.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Use a GPU. Without it, large models answer slowly.")] = False,
    queue: Queue = None,
    timeout: Patience = PATIENCE,
    namespace: Namespace = None,
    context: Context = None,
    output: Output = None,
) -> None:
    """Ask the model that a job has trained.

    Each question is a conversation of its own. Every token is the most likely token, so an answer does not change.
    """
    from finetune_cli import jobs, views
    from finetune_cli.workspace import ask as model

    asked = _questions(questions or [], file)
    client = client_of(context, namespace)
    job = jobs.get(client, name)
    model.check(job, base)
    several = len(questions or []) != 1
    found = []

    def show(part: str) -> None:
        if not output:
            print(part, end="", flush=True)

    def said() -> Iterator[str]:
        for question in asked:
            if several:
                show(f"> {question}\n")
            yield question

    need = model.need_of(job, memory, gpu, queue)
    answers = model.answers(
        client, job, said(), need, base=base, max_new_tokens=max_new_tokens, timeout=timeout, emit=show
    )
    with contextlib.closing(answers):  # so that the pod is removed at once, whatever ends the loop
        for question, answer in answers:
            found.append({"question": question, "answer": answer})
            show("\n\n" if several else "\n")
    if output:
        views.show_data(found, output)


def _questions(named: list[str], file: str | None) -> Iterator[str]:
    """The questions of the command line, else of the file, else of the standard input."""
    if named and file:
        raise Problem("Ask in one way: either QUESTIONS or --file.")
    if not named and not file and sys.stdin.isatty():
        raise Problem('Say what to ask: finetune ask NAME "question", or --file FILE with a question on each line.')
    if named:
        return iter(named)
    if file and file != "-":
        try:
            with open(file, encoding="utf-8") as lines:
                return iter([line.strip() for line in lines if line.strip()])
        except OSError as error:
            raise Problem(f"{file} cannot be read: {error.strerror}") from error
    return (line.strip() for line in sys.stdin if line.strip())


@app.command()
def plot(
    names: Names,
    metric: Annotated[str | None, typer.Option(help="Name of the curve. Default: loss.")] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="Draw the smoothed line of each curve.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Every point of the log in the workspace, not only those of the status.")
    ] = False,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="Draw an image: FILE.png, FILE.svg or FILE.pdf.")
    ] = None,
    queue: Queue = None,
    timeout: Patience = PATIENCE,
    namespace: Namespace = None,
    context: Context = None,
    output: Output = None,
) -> None:
    """Draw a curve in the terminal or as an image. Several jobs share the axes.

    The points are those of the status, at most 256. --full reads the whole log, in a pod.
    """
    from finetune_cli import jobs, plots, views

    if file:
        plots.check_image(file)
    client = client_of(context, namespace)
    found = [jobs.get(client, name) for name in names]
    if full:
        from finetune_cli.workspace import report as reports

        curve = metric or plots.LOSS
        points = {job["metadata"]["name"]: reports.full_curve(client, job, curve, queue, timeout) for job in found}
        points = {name: plots.smoothed(each) if smooth else each for name, each in points.items()}
    else:
        points = plots.selected(found, metric, smooth)
    if file:
        plots.save(points, file, metric or plots.LOSS)
        typer.echo(f"{file} written.")
    if output:
        views.show_data({name: [list(point) for point in curve] for name, curve in points.items()}, output)
    elif not file:
        plots.show(points)
