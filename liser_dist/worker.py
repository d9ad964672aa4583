"""What runs in a process of Ray Train: a worker that joins the others and goes through its loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import torch
from ray._common.network_utils import build_address
from ray.train._internal.utils import get_address_and_port
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device
from torch import distributed as dist

from liser_dist.train_job import TrainJob
from liser_dist.train_loop import TrainLoop

logger = logging.getLogger(__name__)


def work(config: dict[str, Any], stream: Iterator[Any]) -> None:
    """Runs in each worker, on its own part of the stream."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message).1900s")
    job: TrainJob = config["job"]
    torch.set_num_threads(max(1, int(job.spec.resources.worker_cpus)))
    torch.use_deterministic_algorithms(job.spec.deterministic, warn_only=True)
    with joined() as device:
        labelled, validation = ray.get([config["labelled"], config["validation"]])
        TrainLoop(job, stream, labelled, validation, device).run()


@contextmanager
def joined() -> Iterator[torch.device]:
    """The worker in torch's process group, when it is not alone; its device.

    A GPU that Ray was only told of (`ray start --num-gpus`) is the CPU.
    """
    device = get_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning("Ray gives this worker a GPU, and torch finds none: it works on the CPU")
        device = torch.device("cpu")
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if workers == 1:
        yield device
        return
    here = build_address(*get_address_and_port()) if rank == 0 else None
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{broadcast_from_rank_zero(here)}",
        rank=rank,
        world_size=workers,
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()
