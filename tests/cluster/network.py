"""The network of a cluster: host, node 1 and node 2 are on a bridge inside node 1.

Called by cluster.py and teardown.py. The host only has a veth link, named after the cluster, and no routes or firewall
rules: kube-proxy's rules, the pods' routes and IP forwarding are inside the nodes' namespaces and end with them.
Invariant: only the subnet of the bridge must differ from all others on this machine. Pod and Service subnets are never
visible outside.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.cluster import packages
from tests.cluster.state import ClusterError, State, all_clusters

# RFC 2544 reserves this range for benchmarks, so offices, clouds and VPNs do not route it.
RANGE = ipaddress.ip_network("198.18.0.0/15")
PREFIX = 28
BRIDGE = "nodes"


def choose_subnet(cluster: str, taken: Iterable[str]) -> str:
    """A subnet of the range that overlaps nothing in `taken`. The id of the cluster decides where the search starts."""
    used = [ipaddress.ip_network(subnet, strict=False) for subnet in taken]
    used = [subnet for subnet in used if subnet.prefixlen > 0 and subnet.version == 4]
    count = 1 << (PREFIX - RANGE.prefixlen)
    start = int(cluster, 16) % count
    for step in range(count):
        number = (start + step) % count
        candidate = ipaddress.ip_network((int(RANGE.network_address) + number * (1 << (32 - PREFIX)), PREFIX))
        if not any(candidate.overlaps(subnet) for subnet in used):
            return str(candidate)
    raise ClusterError(
        f"no free /{PREFIX} left in {RANGE}: the routes of this machine use all of it. Remove some (see `ip route`)"
    )


def taken_subnets() -> list[str]:
    routes = json.loads(_ip(["-json", "-4", "route", "show", "table", "all"]) or "[]")
    used = [route["dst"] for route in routes if route["dst"] != "default"]
    return used + [state.subnet for state in all_clusters() if state.subnet]


def address(state: State, which: int) -> str:
    """The address of the host (0) or of a node (1 or 2)."""
    return str(ipaddress.ip_network(state.subnet)[which + 1])


def pod_subnet(node: int) -> str:
    return f"10.244.{node}.0/24"


def link(state: State) -> str:
    return f"ft{state.id}"


def ensure(state: State, holders: dict[int, int]) -> None:
    """Create the missing links, addresses and routes. Existing links, addresses and routes stay."""
    first = holders[1]
    if link(state) not in _links(None):
        _ip(["link", "add", link(state), "type", "veth", "peer", "name", "host", "netns", str(first)])
    _address(None, link(state), address(state, 0))
    if BRIDGE not in _links(first):
        _ip(["link", "add", BRIDGE, "type", "bridge"], first)
    _ip(["link", "set", "host", "master", BRIDGE, "up"], first)
    _address(first, BRIDGE, address(state, 1))
    if 2 in holders:
        if "node2" not in _links(first):
            _ip(["link", "add", "node2", "type", "veth", "peer", "name", BRIDGE, "netns", str(holders[2])], first)
        _ip(["link", "set", "node2", "master", BRIDGE, "up"], first)
        _address(holders[2], BRIDGE, address(state, 2))
    for node, holder in holders.items():
        _ip(["link", "set", "lo", "up"], holder)
        # There is nothing outside, but the address of a Service is rewritten only if a route for it exists.
        _ip(["route", "replace", "default", "dev", BRIDGE], holder)
        for other in holders:
            if other != node:
                _ip(["route", "replace", pod_subnet(other), "via", address(state, other)], holder)
        _enter(holder, ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])


def remove(state: State) -> None:
    if link(state) in _links(None):
        _ip(["link", "delete", link(state)])


def link_left(state: State) -> bool:
    return Path(f"/sys/class/net/{link(state)}").exists()


def _address(holder: int | None, device: str, own: str) -> None:
    _ip(["address", "replace", f"{own}/{PREFIX}", "dev", device], holder)
    _ip(["link", "set", device, "up"], holder)


def _links(holder: int | None) -> set[str]:
    return {item["ifname"] for item in json.loads(_ip(["-json", "link", "show"], holder))}


def _ip(arguments: list[str], holder: int | None = None) -> str:
    return _enter(holder, [packages.find("ip") or "ip", *arguments])


def _enter(holder: int | None, argv: list[str]) -> str:
    """Run in the network namespace only, because the process ids in the arguments of `ip` are those of the host."""
    inside = [packages.find("nsenter") or "nsenter", f"--net=/proc/{holder}/ns/net", "--"] if holder else []
    done = subprocess.run([*inside, *argv], capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout
