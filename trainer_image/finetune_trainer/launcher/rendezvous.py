"""The rendezvous: how the ranks of all nodes meet before any of them loads a model.

Called by `worker`. Rank 0 runs torch's key-value store. The others connect to it by the name of node 0's pod, which may
take a while to reach DNS. Rank 0 itself needs no name: its store listens on all addresses. Every rank that came names
those that did not come in time, by rank and node. All ranks take rank 0's run id, because the directories follow from
it. Then torch's process group is created, so that TRL and accelerate find it.

The time-out of the process group is longer than every other limit: `hang_detection` finds a rank that hangs, `peers` a
rank that ended.
"""

import json
import logging
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from finetune_trainer.errors import RendezvousFailed
from finetune_trainer.launcher.handover import Handover
from finetune_trainer.launcher.peers import Peers, describe_ranks
from finetune_trainer.runtime import heartbeat

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

POLL = 0.2
CONNECT_SECONDS = 5.0
"""Seconds for one attempt to connect to rank 0."""
STORE_TIMEOUT = timedelta(seconds=60)
LOCALHOST = "127.0.0.1"
NETWORK_HELP = "whether a NetworkPolicy lets the job's pods connect to each other"

log = logging.getLogger(__name__)


def join(handover: Handover, rank: int, peers: Peers, check_stop: Callable[[], None]) -> str:
    """Wait for all ranks, and create torch's process group; returns rank 0's run id. A single rank returns at once.

    Raises RendezvousFailed, and what ``check_stop`` raises while waiting.
    """
    if not handover.distributed:
        return handover.run_id
    deadline = time.monotonic() + handover.rendezvous_seconds
    store = _open_store(handover, rank, deadline, check_stop)
    peers.connect(_connect(handover, rank))
    run_id = _wait_for_all(store, handover, rank, deadline, check_stop)
    _create_process_group(store, handover, rank)
    return run_id


def _open_store(handover: Handover, rank: int, deadline: float, check_stop: Callable[[], None]) -> "TCPStore":
    """Start the store on rank 0; connect to it on the other ranks."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # takes seconds

    if rank == 0:
        return TCPStore(LOCALHOST, handover.port, None, True, STORE_TIMEOUT, wait_for_workers=False)
    last_error: OSError | None = None
    while time.monotonic() < deadline:
        check_stop()
        heartbeat.beat("load", use="stalled")
        try:
            # torch's own client would retry for minutes, ignore SIGTERM, and fill the log.
            socket.create_connection((handover.host, handover.port), CONNECT_SECONDS).close()
            return _connect(handover, rank)
        except OSError as error:
            last_error = error
            time.sleep(POLL)
    raise RendezvousFailed(
        f"Rank {rank} (node {handover.node}) could not reach rank 0 at {handover.host}:{handover.port} within"
        f" {handover.rendezvous_seconds:.0f} s ({last_error}). Check whether the pod of node 0 runs, and {NETWORK_HELP}"
    )


def _connect(handover: Handover, rank: int) -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = handover.host if rank else LOCALHOST
    return TCPStore(host, handover.port, None, False, STORE_TIMEOUT, wait_for_workers=False)


def _wait_for_all(
    store: "TCPStore", handover: Handover, rank: int, deadline: float, check_stop: Callable[[], None]
) -> str:
    """Register this rank, and wait until rank 0 has decided which ranks are missing."""
    store.set(f"joined/{rank}", socket.gethostname())
    missing = set(range(handover.world_size))
    while not store.check(["verdict"]):
        check_stop()
        heartbeat.beat("load", use="stalled")
        missing = {peer for peer in missing if not store.check([f"joined/{peer}"])} if rank == 0 else missing
        if rank == 0 and (not missing or time.monotonic() > deadline):
            store.set("verdict", json.dumps({"runId": handover.run_id, "missing": sorted(missing)}))
        elif time.monotonic() > deadline + CONNECT_SECONDS:
            raise RendezvousFailed(
                f"Rank {rank} (node {handover.node}) joined, but rank 0 did not decide whether all ranks have. See the"
                " log of the pod of node 0"
            )
        else:
            time.sleep(POLL)
    verdict = json.loads(store.get("verdict"))
    if verdict["missing"]:
        raise RendezvousFailed(
            f"{describe_ranks(verdict['missing'], handover.ranks_on_node)} did not join at"
            f" {handover.host}:{handover.port} within {handover.rendezvous_seconds:.0f} s; the other"
            f" {handover.world_size - len(verdict['missing'])} of {handover.world_size} ranks did. See the logs of"
            f" their pods, and check {NETWORK_HELP}"
        )
    if rank == 0:
        log.info("All %d ranks have joined", handover.world_size)
    return str(verdict["runId"])


def _create_process_group(store: "TCPStore", handover: Handover, rank: int) -> None:
    import torch
    from torch import distributed

    from finetune_trainer.collectives import COLLECTIVE_TIMEOUT

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
