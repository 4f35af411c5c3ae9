"""The commands that ask the API server. `finetune_cli.file_commands` has those that start from a file, and
`finetune_cli.workspace_commands` those that read the workspace of a job, `finetune_cli.page_command` the page."""

from typing import Annotated, Any

import typer

from finetune_cli import file_commands, page_command, workspace_commands
from finetune_cli.options import Context, Everywhere, Namespace, Output, Selector, Timeout
from finetune_cli.problem import Exit, Problem
from finetune_cli.program import AnyName, Name, Names, Setting, app, client_of

__all__ = ["app", "file_commands", "page_command", "workspace_commands"]


@app.command("list")
def list_(
    everywhere: Everywhere = False,
    selector: Selector = "",
    namespace: Namespace = None,
    context: Context = None,
    output: Output = None,
) -> None:
    """List the jobs."""
    from finetune_cli import jobs, views
    from finetune_cli.output import document, listing

    found = jobs.all_of(client_of(context, namespace), everywhere, selector)
    if output:
        document(listing(found), output)
    else:
        views.show_list(found, everywhere)


@app.command()
def describe(name: Name, namespace: Namespace = None, context: Context = None, output: Output = None) -> None:
    """Show a job and its timeline: attempts, conditions, events."""
    from finetune_cli import jobs, views
    from finetune_cli.output import document

    client = client_of(context, namespace)
    job = jobs.get(client, name)
    if output:
        document(job, output)
    else:
        views.show_job(client, job)


@app.command()
def why(name: Name, namespace: Namespace = None, context: Context = None, output: Output = None) -> None:
    """Say where a job stands, and what to do. Also since when, and whose turn it is."""
    from finetune_cli import clock, jobs
    from finetune_cli import why as reasons

    job = jobs.get(client_of(context, namespace), name)
    if output:
        from finetune_cli.views import show_data

        show_data(reasons.explain(job, clock.now()), output)
    else:
        import textwrap

        print(textwrap.fill(reasons.paragraph(job, clock.now()), 100, break_long_words=False, break_on_hyphens=False))


@app.command()
def watch(
    name: AnyName = None,
    everywhere: Everywhere = False,
    timeout: Timeout = 0,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show live progress. One job is shown until it ends, all jobs until Ctrl-C."""
    from finetune_cli import watching

    client = client_of(context, namespace)
    if name:
        raise typer.Exit(watching.one(client, name, timeout))
    watching.every(client, everywhere, timeout)


@app.command()
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until the job ends, across attempts.")
    ] = False,
    attempt: Annotated[list[int], typer.Option(help="Only these attempts.")] = [],  # noqa: B006
    rank: Annotated[list[int], typer.Option(help="Only these pods of an attempt, from 0.")] = [],  # noqa: B006
    kind: Annotated[list[str], typer.Option(help="Only pods of this kind: prepare or train.")] = [],  # noqa: B006
    tail: Annotated[int | None, typer.Option(help="Only the last lines of each pod.")] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="The time before each line.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Print the logs of all pods of a job. These are those of all attempts and ranks."""
    from finetune_cli import jobs
    from finetune_cli.logs import pods, show

    client = client_of(context, namespace)
    job = jobs.get(client, name)

    def wanted(pod: dict[str, Any]) -> bool:
        return pods.selected(pod, attempt, rank, kind)

    query = {"tailLines": tail} if tail is not None else {}
    if follow:
        final = show.until_the_end(client, job, wanted, query, show.printer(timestamps))
        raise typer.Exit(Exit.DONE if jobs.phase(final) == "Succeeded" else Exit.FAILED)
    if not show.existing(client, job, wanted, query, show.printer(timestamps)):
        typer.echo(f"No pod of {name} has written a log that still exists. `finetune why {name}` says more.", err=True)


@app.command()
def suspend(names: Names, namespace: Namespace = None, context: Context = None) -> None:
    """Save, end the pods and free the GPUs."""
    from finetune_cli import actions

    actions.each(client_of(context, namespace), names, actions.suspend)


@app.command()
def resume(names: Names, settings: Setting = [], namespace: Namespace = None, context: Context = None) -> None:  # noqa: B006
    """Continue suspended jobs. --set changes resources, prepare or secrets first."""
    from finetune_cli import actions

    actions.each(client_of(context, namespace), names, lambda client, job: actions.resume(client, job, settings))


@app.command()
def retry(names: Names, namespace: Namespace = None, context: Context = None) -> None:
    """Open failed jobs again. They continue from their newest checkpoint."""
    from finetune_cli import actions

    actions.each(client_of(context, namespace), names, actions.retry)


@app.command()
def stop(
    names: Names,
    keep: Annotated[
        bool, typer.Option("--keep", help="Make the artifact of what was trained. Cannot be taken back.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """End the training now, and keep what was trained."""
    from finetune_cli import actions

    if not keep:
        raise Problem(
            "Say what happens to the training: --keep ends it and makes the artifact of what was trained. To pause it,"
            " use `finetune suspend`. To throw it away, use `kubectl delete ftj NAME`."
        )
    actions.each(client_of(context, namespace), names, actions.stop)


@app.command()
def tree(name: AnyName = None, namespace: Namespace = None, context: Context = None) -> None:
    """Show chains: which jobs start from the results of which."""
    from finetune_cli import jobs
    from finetune_cli import tree as chains

    client = client_of(context, namespace)
    if name:
        jobs.get(client, name)
    found = jobs.all_of(client)
    for line in chains.draw(chains.related(found, name) if name else found):
        print(line)


@app.command()
def doctor(namespace: Namespace = None, context: Context = None, output: Output = None) -> None:
    """Check whether the cluster is fit for FineTuneJobs."""
    from finetune_cli import doctor as health
    from finetune_cli import views

    found = []
    for finding in health.examine(client_of(context, namespace)):
        found.append(finding)
        if not output:
            views.show_finding(finding)
    if output:
        views.show_data([finding._asdict() for finding in found], output)
    if any(finding.level == "problem" for finding in found):
        raise typer.Exit(Exit.FAILED)


@app.command()
def compare(names: Names, namespace: Namespace = None, context: Context = None, output: Output = None) -> None:
    """Show jobs side by side. The rows are the fields in which they differ, and their results."""
    from finetune_cli import clock, jobs, views
    from finetune_cli import compare as side_by_side

    client = client_of(context, namespace)
    found = [jobs.get(client, name) for name in names]
    parts = {"spec": side_by_side.differences(found), "results": side_by_side.outcomes(found, clock.now())}
    if output:
        views.show_data({part: {row[0]: row[1:] for row in rows} for part, rows in parts.items()}, output)
    else:
        views.show_comparison(names, parts)
