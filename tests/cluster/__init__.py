"""The local Kubernetes: real components, built from pinned sources, one or two nodes. Once built, it starts in seconds.

`python3 -m tests.cluster --help` shows its command line. Tests and the demo use the names below. It needs only
Python 3.11.
"""

from tests.cluster.cluster import Cluster, find, up
from tests.cluster.images import BASE_IMAGE, REGISTRY, base_image, push
from tests.cluster.kubeconfig import is_ours
from tests.cluster.state import ClusterError

__all__ = ["BASE_IMAGE", "REGISTRY", "Cluster", "ClusterError", "base_image", "find", "is_ours", "push", "up"]
