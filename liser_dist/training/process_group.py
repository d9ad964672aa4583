"""Runs in each train worker: joins torch's process group and runs the training loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device
from torch import distributed as dist

from liser_dist.cluster.ray_train_internals import free_address
from liser_dist.training.loop import TrainLoop
from liser_dist.training.stream import TrainJob

logger = logging.getLogger(__name__)

# Workers wait inside a collective for the slowest one, whose clips or storage may take long. Ray
# notices workers that are lost.
_LONGEST_WAIT = timedelta(hours=12)


def work(config: dict[str, Any], stream: Iterator[Any]) -> None:
    """Run the training loop of this worker.

    Args:
        config: The `TrainJob` under "job", and references to the "labelled" and "validation" clips.
        stream: This worker's batches of unlabelled clips.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message).1900s")
    job: TrainJob = config["job"]
    torch.set_num_threads(max(1, int(job.spec.resources.worker_cpus)))
    torch.use_deterministic_algorithms(job.spec.deterministic, warn_only=True)
    with joined() as device:
        labelled, validation = ray.get([config["labelled"], config["validation"]])
        TrainLoop(job, stream, labelled, validation, device).run()


def _use_interface_of(address: str) -> None:
    """Let gloo connect over the network on which Ray knows this node, unless the user chose one.

    Left to itself it takes the address of the host name, which many systems map to loopback.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextmanager
def joined() -> Iterator[torch.device]:
    """Join torch's process group for the block, unless the worker is alone; yield its device.

    That is the CPU if Ray assigns a GPU that does not exist (`ray start --num-gpus`).
    """
    device = get_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning(
            "Ray assigned a GPU to this worker, but torch finds none; training on the CPU"
        )
        device = torch.device("cpu")
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if workers == 1:
        yield device
        return
    address = free_address() if rank == 0 else None
    _use_interface_of(ray.util.get_node_ip_address())
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{broadcast_from_rank_zero(address)}",
        rank=rank,
        world_size=workers,
        timeout=_LONGEST_WAIT,
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()
