"""Sources: from what a job names to a folder or file that can be read, and its digest.

Called by preparation. Volumes and ConfigMaps are mounted already and stay where they are; hubs and buckets are copied
into the workspace's cache, once for all jobs that share it.
"""

from finetune_trainer.fetch.places import Fetched, Kind, Places
from finetune_trainer.fetch.source import fetch

__all__ = ["Fetched", "Kind", "Places", "fetch"]
