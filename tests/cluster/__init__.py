"""The local Kubernetes: real parts, built from pinned sources, one or two nodes, up in seconds once built.

`python3 -m tests.cluster --help` is its command line; tests and the demo use the names below. Needs Python 3.11 and
nothing else.
"""

from tests.cluster.cluster import Cluster, find, up
from tests.cluster.images import BASE_IMAGE, REGISTRY, base_image, push
from tests.cluster.kubeconfig import is_ours
from tests.cluster.state import ClusterError

__all__ = ["BASE_IMAGE", "REGISTRY", "Cluster", "ClusterError", "base_image", "find", "is_ours", "push", "up"]
