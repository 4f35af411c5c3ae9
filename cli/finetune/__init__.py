"""The Python SDK of finetune-operator: train, look at, and wait for FineTuneJobs, in a cluster or on this machine.

The names are those of Kubeflow's TrainerClient::

    from finetune import TrainerClient

    client = TrainerClient()                      # the current context of the kubeconfig
    name = client.train(model="hf://Qwen/Qwen3-4B-Instruct-2507", dataset="pvc://data/rows.jsonl=alpaca")
    client.wait_for_job_status(name, timeout=3600)
    print(client.get_job(name).metrics)

``TrainerClient("local")`` trains on this machine instead; it needs the trainer, as docs/cli.md says.
"""

from finetune.client import TrainerClient
from finetune.job import Event, Job

__all__ = ["Event", "Job", "TrainerClient"]
