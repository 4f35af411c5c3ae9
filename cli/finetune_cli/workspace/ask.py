"""`finetune ask`: questions to the model that a job has trained, answered in a pod with the job's image.

The pod loads the artifact, and the base model if the artifact is an adapter, from the volumes. It has the CPU and the
memory of the job's own pods, and a GPU only if the user asks for it. The questions go to its standard input: they are
in no object of the cluster and in no audit log.
"""

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.remote import RemoteCommand
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace.fetch import artifact_of
from finetune_cli.workspace.pod import WORKSPACE, Need
from finetune_cli.workspace.session import opened

SECONDS = 4 * 3600


def need_of(job: Object, memory: str | None, gpu: bool, queue: str | None) -> Need:
    """What the pod needs. The API server has filled in the defaults of spec.resources."""
    resources = job["spec"]["resources"]
    return Need(
        seconds=SECONDS,
        cpu=str(resources["cpu"]),
        memory=memory or str(resources["memory"]),
        gpu=gpu,
        models=True,
        queue=queue,
    )


def check(job: Object, base: bool) -> None:
    """Raises Problem if the job has no model that answers."""
    artifact_of(job)
    if job["spec"]["stage"] == "rm" and not base:
        raise Problem(
            f"{job['metadata']['name']} is of stage rm: its model scores answers and writes none. --base asks the model"
            " that it was trained from.",
            Exit.REFUSED,
        )


def answers(
    client: Client,
    job: Object,
    questions: Iterable[str],
    need: Need,
    *,
    base: bool,
    max_new_tokens: int,
    timeout: float,
    emit: Callable[[str], None],
) -> Generator[tuple[str, str], None, None]:
    """(question, answer) for each question, in their order. ``emit`` gets the parts of an answer as they come."""
    words = ["python", "-m", "finetune_trainer", "generate"]
    # The artifact says of which job it is, with every default as it was then.
    words += ["--job", f"{WORKSPACE}/jobs/{job['metadata']['name']}/artifact/provenance.json", "--workspace", WORKSPACE]
    words += ["--prompts", "-", "--max-new-tokens", str(max_new_tokens), "--checkpoint", "base" if base else "artifact"]
    with opened(client, job, need, timeout) as reader, reader.run(*words, stdin=True) as command:
        lines = _messages(command)
        for question in questions:
            command.write(json.dumps(question).encode() + b"\n")
            yield question, _answer(lines, emit)
        command.end_input()
        for _ in lines:  # until the command has ended
            pass


def _answer(lines: Iterator[dict[str, Any]], emit: Callable[[str], None]) -> str:
    for line in lines:
        if "text" in line:
            emit(str(line["text"]))
        elif "answer" in line:
            return str(line["answer"])
    raise Problem("The model ended before it had answered. Run the command again.", Exit.FAILED)


def _messages(command: RemoteCommand) -> Iterator[dict[str, Any]]:
    """The lines of the trainer. What libraries print between them is left out."""
    for line in command.lines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict):
            yield message
