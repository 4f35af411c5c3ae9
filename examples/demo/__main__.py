"""The command line of the demo. Exit codes: 0 succeeded, 1 failed or could not run, 130 Ctrl-C, 143 SIGTERM."""

import argparse
import os
import signal
import sys
import time

from examples.demo import cluster, laptop
from examples.demo.kubectl import DemoError
from examples.demo.view import clock
from tests.cluster import ClusterError
from tests.images import BuildError


def main() -> int:
    """Run a playbook and print how long it took."""
    began = time.monotonic()
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if arguments.playbook == "laptop":
            laptop.run()
        else:
            cluster.run(arguments)
    except (DemoError, ClusterError, BuildError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(f"\nTotal time: {clock(time.monotonic() - began)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line. Images may also come from the environment; `make` passes them that way."""
    top = argparse.ArgumentParser(
        prog="python -m examples.demo", description="A FineTuneJob from nothing to an answer."
    )
    playbooks = top.add_subparsers(dest="playbook", required=True)
    on_cluster = playbooks.add_parser("cluster", help="on the local Kubernetes or on your own cluster")
    on_cluster.add_argument(
        "--context", metavar="NAME", help="a context of your kubeconfig, instead of the local Kubernetes"
    )
    on_cluster.add_argument(
        "--name", default="local", metavar="NAME", help="the name of the local Kubernetes (default: %(default)s)"
    )
    on_cluster.add_argument(
        "--operator-image",
        default=os.environ.get("IMAGE_OPERATOR"),
        metavar="IMAGE",
        help="with --context: the operator's image, in a registry that the cluster can reach",
    )
    on_cluster.add_argument(
        "--trainer-image",
        default=os.environ.get("IMAGE_TRAINER"),
        metavar="IMAGE",
        help="with --context: the trainer's image",
    )
    on_cluster.add_argument("--cpu", action="store_true", help="with --context: request no GPU")
    playbooks.add_parser("laptop", help="with the trainer alone: no Kubernetes, no root")
    return top


if __name__ == "__main__":
    sys.exit(main())
