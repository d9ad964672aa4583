"""The stream of a group of train workers: what Ray Train's controller builds, splits and watches.

Ray loads this in processes that need no torch, so nothing here may import it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, UserCallback
from ray.train.backend import Backend, BackendConfig

from liser_dist.errors import in_a_line
from liser_dist.pipeline import build_examples, ours_in
from liser_dist.train_job import STREAM, TrainJob, left_to_teach

logger = logging.getLogger(__name__)


class SharedGpus(Backend):
    """Workers of a node see each other's GPUs, as NCCL likes it."""

    share_cuda_visible_devices = True


class WorkersJoinThemselves(BackendConfig):
    """Ray's own `TorchConfig` would have its controller load torch before it starts a worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        return SharedGpus


def rest_of(job: TrainJob) -> Dataset:
    """The stream of the clips that are to be taught: see `to_teach`."""
    return build_examples(job.spec, left_to_teach(job), job.desk, keeping=job.keeping)


def open_stream(job: TrainJob) -> Iterator[pa.Table]:
    """A worker's batches, the first of them asked for at once; none where the store has it all."""
    if job.taught_before:
        return iter(())
    context = ray.train.get_context()
    stream = ray.train.get_dataset_shard(STREAM).iter_batches(
        batch_size=job.share(context.get_world_rank(), context.get_world_size()),
        batch_format="pyarrow",
        prefetch_batches=1,  # more would keep the first one waiting for them
    )
    batches = iter(stream)
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, batches, None)
    thread.shutdown(wait=False)  # it ends with the first

    def from_the_first() -> Iterator[pa.Table]:
        if (batch := first.result()) is not None:
            yield batch
            yield from batches

    return from_the_first()


class UnevenSplit(DataConfig):
    """Hands every row to one worker, whoever is emptiest; Ray's own drops an uneven tail."""

    def __init__(self, options: ExecutionOptions, rows_in_turn: int | None) -> None:
        """`rows_in_turn`: so many of the stream's rows make a step, each worker's share in turn.

        So a step's clips, and which worker has them, depend on nothing but the stream's order.
        """
        super().__init__(execution_options=options, enable_shard_locality=False)
        self._rows_in_turn = rows_in_turn

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        splits = {}
        for name, dataset in datasets.items():
            dataset = dataset.copy(dataset)
            dataset.context.execution_options = self._resolve_execution_options(name)
            if self._rows_in_turn:
                rows = self._rows_in_turn // world_size
                dataset = dataset.repartition(target_num_rows_per_block=rows, strict=True)
            splits[name] = dataset.streaming_split(world_size, equal=False)
        return [{name: parts[rank] for name, parts in splits.items()} for rank in range(world_size)]


class Watch(UserCallback):
    """Says in the job's log, from Ray Train's controller, that workers were lost."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in worker_exceptions.items():
            what = in_a_line(ours_in(error))
            logger.warning("train worker %d was lost; starting again: %s", rank, what)
