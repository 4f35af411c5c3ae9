"""The command line: `python3 -m tests.cluster COMMAND`. Exit codes: 0 done, 1 failed or not up, 3 this machine cannot
run it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from tests.cluster import api, binaries, cluster, images, process, sandbox, teardown
from tests.cluster import state as states
from tests.cluster.console import step
from tests.cluster.requirements import CannotRun
from tests.cluster.state import DEFAULT_NAME, NODES_ALLOWED, ClusterError, State


def main() -> int:
    arguments = _parser().parse_args()
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 3
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.cluster", description="The local Kubernetes of this checkout."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], help: str, named: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(command=run)
        if named:
            command.add_argument(
                "--name", default=DEFAULT_NAME, help="which cluster of this checkout (default: %(default)s)"
            )
        return command

    command = add("up", _up, "start the cluster, or the parts of it that are missing")
    command.add_argument("--nodes", type=int, default=1, choices=NODES_ALLOWED)
    command.add_argument(
        "--control-plane-only",
        action="store_true",
        help="only API server and controllers, on loopback; needs no root and runs no pods",
    )
    add("down", _down, "stop the cluster and remove everything except caches")
    add("status", _status, "show what runs and where to reach it")
    command = add("build", _build, "build the programs and start nothing", named=False)
    command.add_argument("--control-plane-only", action="store_true")
    command = add("push", _push, f"copy a buildah image to the nodes, as {images.REGISTRY}/NAME")
    command.add_argument("image", metavar="IMAGE")
    command.add_argument(
        "--as", dest="target", default="", metavar="NAME[:TAG]", help="default: the name of the image without its host"
    )
    add("base-image", _base_image, f"make {images.BASE_IMAGE} from Debian packages, unless it exists", named=False)
    command = add(
        "exec", _exec, "run a program of this machine inside a node: exec --node 2 -- ctr -n k8s.io containers list"
    )
    command.add_argument("--node", type=int, default=1, choices=NODES_ALLOWED)
    command.add_argument("argv", nargs="+", metavar="PROGRAM")
    add("purge", _purge, "remove every cache: programs, pushed images, unpacked images", named=False)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    cluster.up(arguments.name, arguments.nodes, arguments.control_plane_only)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    state = states.load(arguments.name)
    if state is None:
        print(f"cluster {arguments.name} is not up")
        return 0
    with step(f"cluster {arguments.name} down"):
        teardown.down(state)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    state = states.load(arguments.name)
    if state is None:
        print(f"cluster {arguments.name} is not up. Start it: python3 -m tests.cluster up --name {arguments.name}")
        return 1
    server = cluster.endpoint(state).server
    kind = "control plane only" if state.control_plane_only else f"{state.nodes} node(s)"
    print(f"cluster     {state.name}, context {state.context}, {kind}")
    print(f"kubeconfig  {state.kubeconfig}\nserver      {server}")
    if not state.control_plane_only:
        print(f"registry    {images.registry_address(state)}, in pods {images.REGISTRY}")
    alive = {name: process.running(state, name) for name in process.names(state)}
    for name, runs in alive.items():
        record = process.read(state, name)
        text = f"runs, process {record['pid']}" if record and runs else f"stopped; see {process.log_path(state, name)}"
        print(f"  {name:<26}{text}")
    code, answer = api.call(state, server, "GET", "/api/v1/nodes")
    for node in answer["items"] if code == 200 else []:
        ready = any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in node["status"].get("conditions", [])
        )
        print(f"  {node['metadata']['name']:<26}{'Ready' if ready else 'NotReady'}")
    return 0 if code == 200 and alive and all(alive.values()) else 1


def _build(arguments: argparse.Namespace) -> int:
    binaries.ensure(binaries.CONTROL_PLANE if arguments.control_plane_only else binaries.EVERYTHING)
    return 0


def _push(arguments: argparse.Namespace) -> int:
    with step(f"push {arguments.image}"):
        reference = images.push(_full(arguments.name), arguments.image, arguments.target)
    print(reference)
    return 0


def _base_image(arguments: argparse.Namespace) -> int:
    with step("base image"):
        images.base_image()
    print(images.BASE_IMAGE)
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    record = process.read(_full(arguments.name), f"node-{arguments.node}")
    if record is None or not process.alive(record):
        raise ClusterError(f"cluster {arguments.name} has no node {arguments.node}")
    argv = sandbox.enter(record["pid"], arguments.argv)
    os.execv(argv[0], argv)


def _full(name: str) -> State:
    running = cluster.find(name)
    if running is None or running.state.control_plane_only:
        raise ClusterError(f"cluster {name} is not up with nodes. Start it: python3 -m tests.cluster up --name {name}")
    return running.state


def _purge(arguments: argparse.Namespace) -> int:
    teardown.purge()
    return 0


if __name__ == "__main__":
    sys.exit(main())
