"""What the shell completes: names of jobs."""

datasets_help = "SOURCE=FORMAT, such as pvc://data/rows.jsonl=alpaca; may be repeated."


def job_names(ctx: object, incomplete: str) -> list[str]:
    """Names of jobs that begin so. Empty if no cluster answers: completion must not print errors."""
    from finetune_cli import jobs
    from finetune_cli.cluster.client import client

    try:
        given = getattr(ctx, "params", {})
        found = jobs.all_of(client(given.get("context"), given.get("namespace")))
    except Exception:
        return []
    return [job["metadata"]["name"] for job in found if job["metadata"]["name"].startswith(incomplete)]
