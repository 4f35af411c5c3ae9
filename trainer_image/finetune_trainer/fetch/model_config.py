"""The config.json of a model, without its weights: what an estimate of memory needs."""

from pathlib import Path

from finetune_api import source
from finetune_api.source import HubPath, S3Path

from finetune_trainer.errors import NotFound
from finetune_trainer.fetch import mounted
from finetune_trainer.fetch.retry import with_retries

NAME = "config.json"


def fetch_config(uri: str, volumes: dict[str, Path], folder: Path) -> Path:
    """The folder with the config.json of the model ``uri``. That of a hub or a bucket is fetched into ``folder``.
    Raises NotFound, AccessDenied, SourceUnreachable."""
    place = source.parse(uri)
    if isinstance(place, HubPath):
        from finetune_trainer.fetch import hub

        name = f"{place.path}/{NAME}".lstrip("/")
        repository, revision = place.repository, place.revision or "main"
        content = with_retries(lambda: hub.read_file(repository, revision, name, uri), lambda: None)
    elif isinstance(place, S3Path):
        from finetune_trainer.fetch import s3_client

        bucket, key = place.bucket, f"{place.prefix}/{NAME}".lstrip("/")
        content = with_retries(lambda: s3_client.read_object(bucket, key, uri), lambda: None)
    else:
        found = mounted.find(uri, volumes)
        if not (found / NAME).is_file():
            raise NotFound(f"{uri}: has no {NAME}. Name the folder of the model")
        return found
    (folder / NAME).write_bytes(content)
    return folder
