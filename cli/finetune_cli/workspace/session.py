"""A pod that reads a workspace, from its creation to its removal: also after an error, Ctrl-C or SIGTERM."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from finetune_cli import paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.cluster.remote import Broken, CommandFailed, RemoteCommand
from finetune_cli.output import warn
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace import place, waiting
from finetune_cli.workspace.pod import CONTAINER, Need, manifest

NOT_FOUND, WRONG_COMMAND = 66, (1, 64)
"""Exit codes of the trainer's programs. A Python that does not find a module ends with 1."""
RIGHTS = (
    " This command runs a pod for as long as it takes. It needs: get, list, create and delete pods, and get and create"
    " pods/exec. The role edit has these rights; docs/cli.md explains them."
)


class Missing(Problem):
    """The workspace does not have what was asked for."""


@dataclass(frozen=True)
class Reader:
    """A pod that runs and has the workspace mounted."""

    client: Client
    namespace: str
    name: str
    image: str

    @property
    def path(self) -> str:
        """Its path on the API server."""
        return paths.pods(self.namespace, self.name)

    def run(self, *command: str, stdin: bool = False) -> RemoteCommand:
        """Start a command in it."""
        return RemoteCommand(self.client, self.path, CONTAINER, command, stdin)

    def read(self, command: str, path: str, *options: str) -> RemoteCommand:
        """Start a command of the trainer's module for readers."""
        return self.run("python", "-m", "finetune_trainer.reader", command, path, *options)

    def failed(self, error: CommandFailed) -> Problem:
        """What a command that failed means for the user."""
        if error.code in WRONG_COMMAND and ("No module named" in str(error) or "usage:" in str(error)):
            return Problem(
                f"The trainer image of this job, {self.image}, is of an earlier release and has no program for this."
                " Use the command line of that release.",
                Exit.FAILED,
            )
        words = str(error).splitlines()[-1] if str(error) else "it gave no reason"
        if error.code == NOT_FOUND:
            return Missing(words, Exit.NOT_FOUND)
        return Problem(f"Pod {self.name} failed: {words}{self._memory(error)}", Exit.FAILED)

    def broke(self, error: Exception) -> Problem:
        """What a broken connection, or a command that did not start, means for the user: maybe the pod has ended."""
        with suppress(Problem):
            pod = self.client.find(self.path)
            if pod is None:
                return Problem(f"Somebody has deleted pod {self.name}. Run the command again.", Exit.FAILED)
            if ended := waiting.ended(pod):
                return Problem(f"Pod {self.name} has ended: {ended}", Exit.FAILED)
        return Problem(
            f"The connection to pod {self.name} broke: {error}. Run the command again.",
            Exit.UNREACHABLE,
        )

    def _memory(self, error: CommandFailed) -> str:
        return f". {waiting.OUT_OF_MEMORY}" if error.code == 137 else ""


@contextmanager
def opened(client: Client, job: Object, need: Need, timeout: float) -> Iterator[Reader]:
    """A pod that reads the workspace of the job, for the duration of the block. Raises Problem, also for a command in
    the block that fails or whose connection breaks."""
    with _rights_named():
        made = manifest(job, need, place.find(client, job))
    with running(client, made, timeout) as reader:
        yield reader


@contextmanager
def running(client: Client, made: Object, timeout: float) -> Iterator[Reader]:
    """As `opened`, for any pod."""
    with _rights_named(), _signals():
        _remove_ended(client, made)
        with _created(client, made) as reader:
            waiting.until_it_runs(client, reader.path, timeout)
            try:
                yield reader
            except CommandFailed as error:
                raise reader.failed(error) from error
            except Broken as error:
                raise reader.broke(error) from error
            except ApiError as error:
                if error.status == 403:
                    raise
                raise reader.broke(error) from error


@contextmanager
def _rights_named() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.status == 403:
            raise Problem(f"{error}{RIGHTS}", Exit.DENIED) from error
        raise


@contextmanager
def _created(client: Client, made: Object) -> Iterator[Reader]:
    namespace, name = made["metadata"]["namespace"], made["metadata"]["name"]
    reader = Reader(client, namespace, name, made["spec"]["containers"][0]["image"])
    refused = False
    try:
        try:
            client.call("POST", paths.pods(namespace), made, fieldManager="kubectl-finetune")
        except ApiError as error:
            refused = error.status < 500
            raise
        yield reader
    finally:
        if not refused:  # else, also after an error that leaves open whether the pod was created
            _remove(client, reader)


def _remove_ended(client: Client, made: Object) -> None:
    """Remove pods of earlier commands that were killed. They have ended by themselves."""
    meta = made["metadata"]
    selector = f"{paths.LABEL_READS}={meta['labels'][paths.LABEL_READS]}"
    for pod in client.items(paths.pods(meta["namespace"]), labelSelector=selector):
        if waiting.ended(pod):
            client.delete(paths.pods(meta["namespace"], pod["metadata"]["name"]))


def _remove(client: Client, reader: Reader) -> None:
    """Delete the pod. If that fails, say what remains."""
    name = reader.name
    try:
        client.delete(reader.path, gracePeriodSeconds=1)
    except (Problem, KeyboardInterrupt) as error:
        warn(
            f"Pod {name} could not be removed: {error or 'Ctrl-C'}. It ends by itself; to remove it at once:"
            f" kubectl delete pod {name} -n {reader.namespace}"
        )
        if isinstance(error, KeyboardInterrupt):
            raise


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that the pod is removed."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), end) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
