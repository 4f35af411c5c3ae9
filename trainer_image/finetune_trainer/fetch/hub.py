"""``hf://``: repositories of a Hugging Face hub.

Called by ``source``. The library talks to the hub's API and knows where tokens come from; files are fetched by
ourselves, because its cache needs links and locks that shared volumes don't always have. HF_ENDPOINT names another hub,
HF_TOKEN opens private repositories. No message holds what a server or a library said: it may repeat a token.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2  # brought by huggingface_hub, which raises its errors
from finetune_api.source import COMMIT, HubPath
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from finetune_trainer.errors import AccessDenied, NotFound, SourceUnreachable, TrainerError
from finetune_trainer.fetch import select, store
from finetune_trainer.fetch.places import Fetched, Kind, Places
from finetune_trainer.fetch.remote import Remote, RemoteFile, Stream, check_name, short
from finetune_trainer.fetch.retry import Unsteady, patiently

TIMEOUT = 60.0
"""Seconds without a byte."""
CARD = "README.md"
CARD_LIMIT = 1 << 20


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def fetch(
    uri: str,
    place: HubPath,
    kind: Kind,
    places: Places,
    split: str | None,
    subset: str | None,
    code: bool,
    progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
) -> Fetched:
    """As `source.fetch`. A revision that can't move is found in the store without asking the hub; of one that can, the
    hub is asked, and nothing old is taken for new when it doesn't answer."""
    folder = _folder(place, kind, split, subset, code)
    pinned = place.revision if place.revision and re.fullmatch(COMMIT, uri) else None
    if pinned and (found := store.look_up(places, folder, pinned, uri)):
        return found
    remote = patiently(lambda: _remote(uri, place, kind, folder, split, subset, code), check_stop)
    return store.keep(remote, places, progress, check_stop)


def _folder(place: HubPath, kind: Kind, split: str | None, subset: str | None, code: bool) -> str:
    what = "data" if kind == "data" else "model with code" if code else "model"
    asked = "\n".join([place.repository, what, place.path, split or "", subset or ""])
    return f"hub/{short(place.repository, asked)}"


def _remote(
    uri: str, place: HubPath, kind: Kind, folder: str, split: str | None, subset: str | None, code: bool
) -> Remote:
    repo_type = "dataset" if kind == "data" else "model"
    api = HfApi(endpoint=endpoint())
    with errors(uri):
        commit = api.repo_info(place.repository, repo_type=repo_type, revision=place.revision, timeout=TIMEOUT).sha
        tree = api.list_repo_tree(place.repository, recursive=True, revision=commit, repo_type=repo_type)
        files = {file.path: file for file in tree if isinstance(file, RepoFile)}
    assert commit is not None
    if place.path in files:
        name = place.path.rpartition("/")[2]
        only = _remote_file(uri, place.repository, repo_type, commit, files[place.path], name)
        return Remote(uri, folder, commit, commit, name, [only])
    prefix = f"{place.path}/" if place.path else ""
    below = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
    if not below:
        raise NotFound(f"{uri}: no such file or folder in the repository. It has: {select.listed(sorted(files))}")
    if kind == "data":
        chosen = select.data_files(below, uri, split, subset, _card(uri, place, repo_type, commit, files))
    else:
        chosen = {name: name for name in select.model_files(below, uri, code=code)}
    wanted = [
        _remote_file(uri, place.repository, repo_type, commit, files[prefix + name], to) for name, to in chosen.items()
    ]
    return Remote(uri, folder, commit, commit, "", wanted)


def _remote_file(uri: str, repository: str, repo_type: str, commit: str, file: RepoFile, name: str) -> RemoteFile:
    url = hf_hub_url(repository, file.path, repo_type=repo_type, revision=commit, endpoint=endpoint())
    check = ("sha256", file.lfs.sha256) if file.lfs else ("blob", file.blob_id)

    @contextmanager
    def opened(start: int) -> Iterator[Stream]:
        # Compressed on the way, lengths and ranges would be those of something else.
        headers = {"Accept-Encoding": "identity"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        if start == file.size:
            yield Stream(start, iter(()), check)
            return
        if start:
            headers["Range"] = f"bytes={start}-"
        with (
            errors(uri),
            get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as answer,
        ):
            if answer.status_code >= 400:
                raise by_status(answer.status_code, f"{uri}: {file.path}")
            yield Stream(start if answer.status_code == 206 else 0, answer.iter_raw(), check)

    return RemoteFile(check_name(name, uri), file.lfs.size if file.lfs else file.size, opened)


def _card(uri: str, place: HubPath, repo_type: str, commit: str, files: dict[str, RepoFile]) -> str | None:
    """README.md of a repository, where it may say what its subsets and splits are. It speaks of the whole, so a folder
    that is named by its path is taken by its own names."""
    card = files.get(CARD)
    if card is None or place.path or card.size > CARD_LIMIT:
        return None
    with _remote_file(uri, place.repository, repo_type, commit, card, CARD).open(0) as stream:
        return b"".join(stream.chunks).decode(errors="replace")


def read(repository: str, commit: str, name: str, uri: str) -> bytes:
    """A small file of a model's repository, at once."""
    with errors(uri):
        tree = HfApi(endpoint=endpoint()).get_paths_info(repository, [name], revision=commit, repo_type="model")
    file = next(file for file in tree if isinstance(file, RepoFile))
    with _remote_file(uri, repository, "model", commit, file, name).open(0) as stream:
        return b"".join(stream.chunks)


@contextmanager
def errors(uri: str) -> Iterator[None]:
    """Around calls to the hub: what went wrong, for the job's user."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise SourceUnreachable(
            f"{uri}: HF_HUB_OFFLINE forbids to ask the hub. Pin the revision to a commit that is in the workspace's"
            " cache, or unset it"
        ) from None
    except GatedRepoError:
        raise AccessDenied(
            f"{uri} is gated: ask for access on the hub, as the user whose token is HF_TOKEN in the Secret named by"
            " secrets.huggingFace"
        ) from None
    except RevisionNotFoundError:
        raise NotFound(f"{uri}: the repository has no such revision; it is a branch, a tag or a commit") from None
    except HfHubHTTPError as error:
        raise by_status(error.response.status_code, uri) from None
    except httpx2.HTTPError as error:
        raise Unsteady(f"{uri}: {_host()} can't be reached ({type(error).__name__})") from None
    except ConnectionError as error:  # of the library that speaks Xet, which has none of its own
        raise Unsteady(
            f"{uri}: {_host()}: {error}. A hub without Xet storage needs HF_HUB_DISABLE_XET=1 in resources.env"
        ) from None


def by_status(status: int, what: str) -> TrainerError:
    if status in (401, 403):
        who = "is not accepted, or may not read it" if get_token() else "is not set, and it is not public"
        return AccessDenied(
            f"{what}: {_host()} answers {status}: the token {who}. Check the key HF_TOKEN of the Secret named by"
            " secrets.huggingFace, and the name of the repository"
        )
    if status == 404:
        return NotFound(
            f"{what}: {_host()} has no such repository or file, or doesn't show it to this token: check the name, and"
            " HF_TOKEN in the Secret named by secrets.huggingFace"
        )
    text = f"{what}: {_host()} answers {status}"
    return Unsteady(text) if status >= 500 or status in (408, 416, 429) else SourceUnreachable(text)


def _host() -> str:
    parts = urlsplit(endpoint())
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
