"""How the ranks of all nodes meet, before any of them loads a model, and how they part.

Called by `worker`. Rank 0 keeps a small store; the others come to it, by the name of node 0's pod, which may take a
while to be known. Rank 0 itself needs no name: its store listens on all addresses. Who doesn't come in time is named
by rank and node, on every rank that did. All take rank 0's run id: the folders follow from it. Then torch's process
group is made, so that TRL and accelerate find it made.

The group's own time-out lies beyond every bound: a rank that stands still is found by `watch`, a rank that ended by
`peers`.
"""

import json
import logging
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from finetune_trainer import heartbeat
from finetune_trainer.errors import RendezvousFailed
from finetune_trainer.handover import Handover
from finetune_trainer.peers import Peers, named

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

POLL = 0.2
ATTEMPT = 5.0
"""Seconds that one try to reach rank 0 may take."""
STORE_TIMEOUT = timedelta(seconds=60)
COLLECTIVE_TIMEOUT = timedelta(days=14)
HERE = "127.0.0.1"

log = logging.getLogger(__name__)


def join(handover: Handover, rank: int, peers: Peers, check_stop: Callable[[], None]) -> str:
    """Meet; returns rank 0's run id. Raises RendezvousFailed, or what `check_stop` raises while waiting."""
    if not handover.together:
        return handover.run_id
    end = time.monotonic() + handover.rendezvous_seconds
    store = _reach_store(handover, rank, end, check_stop)
    peers.connect(_connect(handover, rank))
    run_id = _meet(store, handover, rank, end, check_stop)
    _make_group(store, handover, rank)
    return run_id


def _reach_store(handover: Handover, rank: int, end: float, check_stop: Callable[[], None]) -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # takes seconds

    if rank == 0:
        return TCPStore(HERE, handover.port, None, True, STORE_TIMEOUT, wait_for_workers=False)
    why: OSError | None = None
    while time.monotonic() < end:
        check_stop()
        heartbeat.beat("load")
        try:
            # torch's own client would retry for minutes, deaf to SIGTERM, and fill the log.
            socket.create_connection((handover.host, handover.port), ATTEMPT).close()
            return _connect(handover, rank)
        except OSError as error:
            why = error
            time.sleep(POLL)
    raise RendezvousFailed(
        f"Rank {rank} (node {handover.node}) could not reach rank 0 at {handover.host}:{handover.port} within"
        f" {handover.rendezvous_seconds:.0f} s ({why}). See whether the pod of node 0 runs, and whether a NetworkPolicy"
        " lets the job's pods talk to each other"
    )


def _connect(handover: Handover, rank: int) -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(handover.host if rank else HERE, handover.port, None, False, STORE_TIMEOUT, wait_for_workers=False)


def _meet(store: "TCPStore", handover: Handover, rank: int, end: float, check_stop: Callable[[], None]) -> str:
    """Come, and wait for rank 0's word on who else did."""
    store.set(f"here/{rank}", socket.gethostname())
    waiting = set(range(handover.world_size))
    while not store.check(["verdict"]):
        check_stop()
        heartbeat.beat("load")
        waiting = {other for other in waiting if not store.check([f"here/{other}"])} if rank == 0 else waiting
        if rank == 0 and (not waiting or time.monotonic() > end):
            store.set("verdict", json.dumps({"runId": handover.run_id, "missing": sorted(waiting)}))
        elif time.monotonic() > end + ATTEMPT:
            raise RendezvousFailed(f"Rank {rank} (node {handover.node}) waited for rank 0's word, which never came")
        else:
            time.sleep(POLL)
    verdict = json.loads(store.get("verdict"))
    if verdict["missing"]:
        raise RendezvousFailed(
            f"{named(verdict['missing'], handover.ranks_on_node)} did not come to {handover.host}:{handover.port}"
            f" within {handover.rendezvous_seconds:.0f} s; the other"
            f" {handover.world_size - len(verdict['missing'])} of {handover.world_size} ranks did. See what their pods"
            " say, and whether a NetworkPolicy lets the job's pods talk to each other"
        )
    if rank == 0 and handover.world_size > 1:
        log.info("All %d ranks are here", handover.world_size)
    return str(verdict["runId"])


def _make_group(store: "TCPStore", handover: Handover, rank: int) -> None:
    import torch
    from torch import distributed

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank % handover.ranks_on_node)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=handover.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=torch.device("cuda", rank % handover.ranks_on_node) if on_gpu else None,
    )
