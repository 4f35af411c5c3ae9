"""The only package that calls the Kubernetes API."""

from finetune_operator.cluster.connection import Pages
from finetune_operator.cluster.errors import ApiError, NamespaceTerminatingError
from finetune_operator.cluster.leases import Leases
from finetune_operator.cluster.reads import EVERYWHERE
from finetune_operator.cluster.writes import Cluster, owners

__all__ = ["EVERYWHERE", "ApiError", "Cluster", "Leases", "NamespaceTerminatingError", "Pages", "owners"]
