"""Sources: from the URI that a job names to a readable folder or file, and its digest.

Called by preparation. Volumes and ConfigMaps are already mounted and stay where they are. Hub repositories and S3
objects are copied into the workspace's cache, once for all jobs that share it.

A fetch in order: `dispatch` chooses by the URI's scheme; `hub` or `s3` lists the files (`file_selection` picks those
that matter); `source_cache` looks for the version in the cache, takes a `lease` and calls `download` for each file.
"""

from finetune_trainer.fetch.context import FetchContext, Fetched, SourceKind
from finetune_trainer.fetch.dispatch import fetch

__all__ = ["FetchContext", "Fetched", "SourceKind", "fetch"]
