"""The command line of the demo. Exit codes: 0 succeeded, 1 failed or could not run, 130 Ctrl-C."""

import argparse
import os
import sys
import time

from examples.demo import cluster, laptop
from examples.demo.kubectl import DemoError
from examples.demo.view import clock
from tests.cluster import ClusterError
from tests.images import BuildError


def main() -> int:
    """Run one playbook and say how long it took."""
    began = time.monotonic()
    arguments = parser().parse_args()
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
    print(f"\nIn all: {clock(time.monotonic() - began)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line; images may also come from the environment, as `make` passes them on."""
    top = argparse.ArgumentParser(
        prog="python -m examples.demo", description="One FineTuneJob from nothing to an answer."
    )
    playbooks = top.add_subparsers(dest="playbook", required=True)
    one = playbooks.add_parser("cluster", help="on the local Kubernetes, or on one of yours")
    one.add_argument("--context", metavar="NAME", help="a context of your kubeconfig, instead of the local Kubernetes")
    one.add_argument("--name", default="local", metavar="NAME", help="which local Kubernetes (default: %(default)s)")
    one.add_argument(
        "--operator-image",
        default=os.environ.get("IMAGE_OPERATOR"),
        metavar="IMAGE",
        help="with --context: the operator's image in a registry that the cluster reaches",
    )
    one.add_argument(
        "--trainer-image",
        default=os.environ.get("IMAGE_TRAINER"),
        metavar="IMAGE",
        help="with --context: the trainer's image",
    )
    one.add_argument("--cpu", action="store_true", help="with --context: ask for no GPU")
    playbooks.add_parser("laptop", help="by the trainer alone: no Kubernetes, no root")
    return top


if __name__ == "__main__":
    sys.exit(main())
