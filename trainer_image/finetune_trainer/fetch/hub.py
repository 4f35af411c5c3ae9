"""``hf://``: repositories of a Hugging Face hub.

Called by `dispatch`. The library talks to the hub's API and finds the token. Files are downloaded by `download`,
because the library's own cache needs links and locks that shared volumes do not always have. HF_ENDPOINT names another
hub, HF_TOKEN opens private repositories. No message repeats a response of the server or the library: it could contain
a token.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2  # brought by huggingface_hub, which raises its errors
from finetune_api.source import COMMIT, HubPath
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from finetune_trainer.errors import AccessDenied, NotFound, SourceUnreachable, TrainerError
from finetune_trainer.fetch import file_selection, source_cache
from finetune_trainer.fetch.context import CheckStop, FetchContext, Fetched, Progress, Request
from finetune_trainer.fetch.remote_files import RemoteFile, RemoteSource, Stream, check_name, entry_folder
from finetune_trainer.fetch.retry import TransientError, with_retries

TIMEOUT = 60.0
"""Seconds without a byte."""
CARD = "README.md"
CARD_LIMIT = 1 << 20


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def fetch(
    request: Request, place: HubPath, context: FetchContext, progress: Progress, check_stop: CheckStop
) -> Fetched:
    """As `dispatch.fetch`. A revision pinned to a commit is looked up in the cache without asking the hub. For a branch
    or tag the hub is always asked; when it does not answer, no cached version is used instead."""
    folder = _entry_folder(request, place)
    pinned = place.revision if place.revision and re.fullmatch(COMMIT, request.uri) else None
    if pinned and (cached := source_cache.look_up(context, folder, pinned, request.uri)):
        return cached
    remote = with_retries(lambda: _list_remote(request, place, folder), check_stop)
    return source_cache.ensure(remote, context, progress, check_stop)


def _entry_folder(request: Request, place: HubPath) -> str:
    what = "data" if request.kind == "data" else "model with code" if request.code else "model"
    requested = "\n".join([place.repository, what, place.path, request.split or "", request.subset or ""])
    return f"hub/{entry_folder(place.repository, requested)}"


def _list_remote(request: Request, place: HubPath, folder: str) -> RemoteSource:
    """The files of the request at the current commit of its revision."""
    uri = request.uri
    repo_type = "dataset" if request.kind == "data" else "model"
    api = HfApi(endpoint=endpoint())
    with translate_errors(uri):
        commit = api.repo_info(place.repository, repo_type=repo_type, revision=place.revision, timeout=TIMEOUT).sha
        tree = api.list_repo_tree(place.repository, recursive=True, revision=commit, repo_type=repo_type)
        files = {file.path: file for file in tree if isinstance(file, RepoFile)}
    assert commit is not None
    if place.path in files:
        name = place.path.rpartition("/")[2]
        only = _remote_file(uri, place.repository, repo_type, commit, files[place.path], name)
        return RemoteSource(uri, folder, commit, commit, name, [only])
    prefix = f"{place.path}/" if place.path else ""
    below = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
    if not below:
        raise NotFound(
            f"{uri}: no such file or folder in the repository. It has: {file_selection.shorten(sorted(files))}"
        )
    if request.kind == "data":
        card = _card(uri, place, repo_type, commit, files)
        chosen = file_selection.data_files(below, uri, request.split, request.subset, card)
    else:
        chosen = {name: name for name in file_selection.model_files(below, uri, code=request.code)}
    selected = [
        _remote_file(uri, place.repository, repo_type, commit, files[prefix + name], to) for name, to in chosen.items()
    ]
    return RemoteSource(uri, folder, commit, commit, "", selected)


def _remote_file(uri: str, repository: str, repo_type: str, commit: str, file: RepoFile, name: str) -> RemoteFile:
    url = hf_hub_url(repository, file.path, repo_type=repo_type, revision=commit, endpoint=endpoint())
    checksum = ("sha256", file.lfs.sha256) if file.lfs else ("blob", file.blob_id)

    @contextmanager
    def open_stream(start: int) -> Iterator[Stream]:
        # With compression in transit, lengths and ranges would not be those of the file.
        headers = {"Accept-Encoding": "identity"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        if start == file.size:
            yield Stream(start, iter(()), checksum)
            return
        if start:
            headers["Range"] = f"bytes={start}-"
        with (
            translate_errors(uri),
            get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as response,
        ):
            if response.status_code >= 400:
                raise error_of_status(response.status_code, f"{uri}: {file.path}")
            yield Stream(start if response.status_code == 206 else 0, response.iter_raw(), checksum)

    return RemoteFile(check_name(name, uri), file.lfs.size if file.lfs else file.size, open_stream)


def _card(uri: str, place: HubPath, repo_type: str, commit: str, files: dict[str, RepoFile]) -> str | None:
    """README.md, which may declare the repository's subsets and splits. It describes the whole repository, so it does
    not apply to a folder that the URI names by its path."""
    card = files.get(CARD)
    if card is None or place.path or card.size > CARD_LIMIT:
        return None
    with _remote_file(uri, place.repository, repo_type, commit, card, CARD).open(0) as stream:
        return b"".join(stream.chunks).decode(errors="replace")


def read_file(repository: str, commit: str, name: str, uri: str) -> bytes:
    """The content of a small file of a model repository, at a commit, a branch or a tag."""
    with translate_errors(uri):
        tree = HfApi(endpoint=endpoint()).get_paths_info(repository, [name], revision=commit, repo_type="model")
    file = next((file for file in tree if isinstance(file, RepoFile)), None)
    if file is None:
        raise NotFound(f"{uri}: the repository has no {name}")
    with _remote_file(uri, repository, "model", commit, file, name).open(0) as stream:
        return b"".join(stream.chunks)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Around calls to the hub: raises the errors of the library as errors for the user."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise SourceUnreachable(
            f"{uri}: HF_HUB_OFFLINE forbids requests to the hub. Pin the revision to a commit in the workspace's"
            " cache, or unset HF_HUB_OFFLINE"
        ) from None
    except GatedRepoError:
        raise AccessDenied(
            f"{uri} is gated. Request access on the hub, as the user whose token is HF_TOKEN in the Secret named by"
            " secrets.huggingFace"
        ) from None
    except RevisionNotFoundError:
        raise NotFound(f"{uri}: the repository has no such revision. Name a branch, a tag or a commit of it") from None
    except HfHubHTTPError as error:
        raise error_of_status(error.response.status_code, uri) from None
    except httpx2.HTTPError as error:
        raise TransientError(f"{uri}: {_host()} is unreachable ({type(error).__name__})") from None
    except ConnectionError as error:  # from the Xet library, which has no error classes of its own
        raise TransientError(
            f"{uri}: {_host()}: {error}. If the hub has no Xet storage, set HF_HUB_DISABLE_XET=1 in resources.env"
        ) from None


def error_of_status(status: int, what: str) -> TrainerError:
    """The error for an HTTP status. ``what`` begins its message."""
    if status in (401, 403):
        cause = (
            "is not accepted, or has no read access" if get_token() else "is not set, and the repository is not public"
        )
        return AccessDenied(
            f"{what}: {_host()} answers {status}: the token {cause}. Check the key HF_TOKEN of the Secret named by"
            " secrets.huggingFace, and the name of the repository"
        )
    if status == 404:
        return NotFound(
            f"{what}: {_host()} has no such repository or file, or does not show it to this token. Check the name, and"
            " HF_TOKEN in the Secret named by secrets.huggingFace"
        )
    text = f"{what}: {_host()} answers {status}"
    return TransientError(text) if status >= 500 or status in (408, 416, 429) else SourceUnreachable(text)


def _host() -> str:
    parts = urlsplit(endpoint())
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
