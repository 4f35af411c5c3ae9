"""One segment per cluster: the host, node 1 and node 2 on a bridge that lives inside node 1.

Called by cluster.py and teardown.py. The host sees one veth link, named after the cluster, and no route or firewall
rule: kube-proxy's rules, the pods' routes and IP forwarding are all inside the nodes' namespaces and end with them.
Invariant: only the segment's subnet has to be unlike all others on this machine; pod and Service subnets are never
seen outside.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.cluster import packages
from tests.cluster.state import ClusterError, State, everything

# RFC 2544 sets this range aside for measuring devices: neither offices nor clouds nor VPNs route it.
RANGE = ipaddress.ip_network("198.18.0.0/15")
PREFIX = 28
BRIDGE = "nodes"


def choose_subnet(cluster: str, taken: Iterable[str]) -> str:
    """A subnet of the range that overlaps nothing taken; the search starts at a place that the cluster's id decides."""
    used = [ipaddress.ip_network(one, strict=False) for one in taken]
    used = [one for one in used if one.prefixlen > 0 and one.version == 4]
    count = 1 << (PREFIX - RANGE.prefixlen)
    start = int(cluster, 16) % count
    for step in range(count):
        number = (start + step) % count
        candidate = ipaddress.ip_network((int(RANGE.network_address) + number * (1 << (32 - PREFIX)), PREFIX))
        if not any(candidate.overlaps(one) for one in used):
            return str(candidate)
    raise ClusterError(f"no free /{PREFIX} left in {RANGE}: this machine's routes take all of it (see `ip route`)")


def taken_subnets() -> list[str]:
    routes = json.loads(_ip(["-json", "-4", "route", "show", "table", "all"]) or "[]")
    used = [route["dst"] for route in routes if route["dst"] != "default"]
    return used + [state.subnet for state in everything() if state.subnet]


def address(state: State, which: int) -> str:
    """0 is the host, 1 and 2 are the nodes."""
    return str(ipaddress.ip_network(state.subnet)[which + 1])


def pod_subnet(node: int) -> str:
    return f"10.244.{node}.0/24"


def link(state: State) -> str:
    return f"ft{state.id}"


def ensure(state: State, holders: dict[int, int]) -> None:
    """Bring links, addresses and routes to what they should be; harmless when they are."""
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
        # Nothing is beyond; but a Service's address is rewritten only after a route for it was found.
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
    return {one["ifname"] for one in json.loads(_ip(["-json", "link", "show"], holder))}


def _ip(arguments: list[str], holder: int | None = None) -> str:
    return _enter(holder, [packages.find("ip") or "ip", *arguments])


def _enter(holder: int | None, argv: list[str]) -> str:
    """In the network namespace only: process ids, which `ip` is given, are the host's."""
    inside = [packages.find("nsenter") or "nsenter", f"--net=/proc/{holder}/ns/net", "--"] if holder else []
    done = subprocess.run([*inside, *argv], capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout
