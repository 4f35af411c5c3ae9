"""The commands that start from a file or from flags: run, new, validate, estimate, import."""

from typing import Annotated

import typer

from finetune_cli.completion import datasets_help, job_names
from finetune_cli.options import Context, Namespace, Output
from finetune_cli.problem import Exit, Problem
from finetune_cli.program import Setting, app, client_of


@app.command()
def run(
    stage: Annotated[str, typer.Option(help="pt, sft, rm, dpo, ppo or kto.")] = "sft",
    model: Annotated[
        str | None, typer.Option(help="hf://org/name@revision, s3://bucket/prefix or pvc://claim/path.")
    ] = None,
    from_job: Annotated[
        str | None, typer.Option(help="Start from the result of this job.", autocompletion=job_names)
    ] = None,
    dataset: Annotated[list[str], typer.Option(help=datasets_help)] = [],  # noqa: B006
    tuning: Annotated[str | None, typer.Option(help="lora, qlora, full or freeze.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. Default: 1.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each node.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Claim of the workspace. Without it, one is created.")] = None,
    workspace_size: Annotated[str, typer.Option(help="Size of a claim that is created.")] = "50Gi",
    reward_model: Annotated[str | None, typer.Option(help="Stage ppo: a source, or the name of a job.")] = None,
    settings: Setting = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Name of the job. Default: from stage and model.")] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="A FineTuneJob, or a configuration of LLaMA-Factory. -: standard input."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the YAML, and send nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show progress until the job ends.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    output: Output = None,
) -> None:
    """Create a FineTuneJob, from flags or from a file."""
    from finetune_cli import flags, manifest, submit

    if file:
        found = submit.from_file(file)
        for each in found:
            flags.change(each, settings)
            if name:
                each["metadata"]["name"] = name
    else:
        found = [
            flags.job_of(
                stage=stage, model=model, from_job=from_job, datasets=dataset, tuning=tuning, name=name, epochs=epochs,
                max_steps=max_steps, gpus=gpus, nodes=nodes, workspace=workspace, workspace_size=workspace_size,
                reward_model=reward_model, settings=settings,
            )
        ]  # fmt: skip
    for each in found:
        manifest.check(each, file or "The job")
    submit.submit(None if dry_run else client_of(context, namespace), found, output, watch)


@app.command()
def new(
    stage: Annotated[str, typer.Argument(help="pt, sft, rm, dpo, ppo or kto.")],
    name: Annotated[str, typer.Option(help="Name of the job.")] = "my-job",
    short: Annotated[bool, typer.Option("--short", help="Without the fields that have defaults.")] = False,
) -> None:
    """Print a commented FineTuneJob to start from, with every field."""
    from finetune_cli import output, starter

    if stage not in starter.STAGES:
        raise Problem(f"{stage} is no stage. Stages: {', '.join(starter.STAGES)}")
    print(output.to_yaml(starter.filled(stage, name)) if short else starter.commented(stage, name), end="")


@app.command()
def validate(
    file: Annotated[str, typer.Argument(help="A file with FineTuneJobs.")],
    rows: Annotated[bool, typer.Option("--rows", help="Check model and data too, as the prepare pod does.")] = False,
    volume: Annotated[list[str], typer.Option(help="CLAIM=DIR: the folder of a claim. With --rows.")] = [],  # noqa: B006
    workspace: Annotated[
        str | None, typer.Option(help="Folder for prepared data. Default: a temporary folder.")
    ] = None,
) -> None:
    """Check FineTuneJobs without a cluster. --rows also checks the model and every row of the data."""
    from finetune_cli import manifest

    found = manifest.jobs_of(file)
    broken = {job["metadata"].get("name", "?"): mistakes for job in found if (mistakes := manifest.mistakes(job))}
    for name, mistakes in broken.items():
        typer.echo(f"{name}:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))
    if broken:
        raise typer.Exit(Exit.FAILED)
    if rows:
        from finetune_cli import local

        raise typer.Exit(local.check_rows(file, workspace, volume))
    typer.echo(f"{len(found)} job{'s'[: len(found) != 1]} valid.")


@app.command()
def estimate(
    file: Annotated[str, typer.Argument(help="A file with a FineTuneJob.")],
    gpus: Annotated[list[int], typer.Option(help="Numbers of GPUs.")] = [1, 2, 4, 8],  # noqa: B006
    model_folder: Annotated[str | None, typer.Option(help="Folder with the model's config.json.")] = None,
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="Estimate in a pod, so that the trainer is not needed here.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that a pod may take to start.")] = 600,
    namespace: Namespace = None,
    context: Context = None,
    output: Output = None,
) -> None:
    """Estimate the memory of each GPU. The table has tuning methods and numbers of GPUs."""
    from finetune_cli import local, manifest, views

    job = manifest.jobs_of(file)[0]
    manifest.check(job, file)
    if in_cluster and model_folder:
        raise Problem("A pod cannot read a folder of this machine: use either --in-cluster or --model-folder.")
    if in_cluster:
        from finetune_cli import jobs
        from finetune_cli.workspace import estimate as estimator

        client = client_of(context, namespace)
        every = jobs.all_of(client)
        job["metadata"]["namespace"] = client.namespace
        found = estimator.in_cluster(client, job, every, gpus, estimator.image_for(job, every), timeout)
    else:
        found = local.estimate(job, model_folder, gpus)
    if output:
        views.show_data(found, output)
    else:
        views.show_estimate(job, found)


@app.command("import")
def import_(
    what: Annotated[
        list[str],
        typer.Argument(help="A YAML of LLaMA-Factory, a script, a TrainJob of Kubeflow; or, after --, a command line."),
    ],
    dataset_info: Annotated[str | None, typer.Option(help="dataset_info.json of LLaMA-Factory, or its folder.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of each node. Default: those of the command line, else 1.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes.")] = None,
    output: Output = None,
) -> None:
    """Turn another trainer's configuration into a FineTuneJob. Notes name what cannot be kept."""
    from finetune_cli.importing import command

    command.show(command.imported(what, dataset_info, name, gpus, nodes), output)
