"""Splits the stream of examples over train workers, and defines the inputs of a worker.

Ray Train's controller loads this module and needs no torch, so nothing here may import it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.exceptions
import ray.train
from numpy.typing import NDArray
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, UserCallback
from ray.train.backend import Backend, BackendConfig

from liser_dist import storage
from liser_dist.cluster.ray_errors import unwrap_ray_error
from liser_dist.cluster.ray_train_internals import hide_user_errors
from liser_dist.config.distill import DistillSpec
from liser_dist.config.stream import StreamSpec
from liser_dist.config.teachers import TeacherIdentity
from liser_dist.data.shard_list import Shard
from liser_dist.data.shards import ShardVisit
from liser_dist.errors import LiserError, one_line
from liser_dist.pipeline.dataset import build_examples
from liser_dist.pipeline.schedule import visits_to_stream
from liser_dist.pipeline.stages import RowOptions
from liser_dist.pipeline.store import Part, StoredParts
from liser_dist.pipeline.store_writer import StoreWriters
from liser_dist.pipeline.tables import to_examples
from liser_dist.records import Example, Provenance
from liser_dist.runs.checkpoint_files import load_ledger, newest_checkpoint
from liser_dist.runs.ledger import Ledger

logger = logging.getLogger(__name__)

STREAM = "clips"  # the name under which Ray Train hands the dataset to its workers
SUMMARY = "training.json"


# ---------------------------------------------------------------- what workers get and leave


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What the first worker writes to the run's folder when the stream has ended."""

    checkpoint: str
    complete: bool  # every clip of every epoch was trained or rejected
    passes: int  # clips trained or rejected, counted once per epoch
    first_step_at: float | None  # time.time(), of the workers that ended the stream
    training_s: float
    data_wait_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Inputs of every train worker."""

    spec: DistillSpec
    run: str  # path of the run
    known: tuple[tuple[bool, ...], tuple[bool, ...]]  # emotions of the speech and the face teacher
    embeddings: dict[str, int]  # width of each teacher's embedding that the loss needs
    visits: Sequence[ShardVisit]  # every shard in every epoch
    shards: Sequence[Shard]  # the unlabelled ones
    coordinator: Any  # actor
    identities: Mapping[str, TeacherIdentity] = field(default_factory=dict)  # of the teachers
    writers: StoreWriters | None = None  # the target store and its writers
    broken: Collection[Part] = ()  # parts of the store whose targets are computed again
    all_stored: bool = False  # the store has all clips that are left: there is no stream

    @property
    def stream(self) -> StreamSpec:
        """What the pipeline needs to know of the job, with the weights that its teachers have."""
        return replace(self.spec.stream, identities=self.identities)

    @property
    def clips(self) -> int:
        """Number of unlabelled clips, as far as it is known."""
        return sum(shard.clips for shard in self.shards)

    @property
    def total_passes(self) -> int:
        """Clips times epochs."""
        return self.clips * self.spec.train.epochs

    def share(self, rank: int, workers: int) -> int:
        """Return the number of a worker's clips in each step."""
        clips = self.spec.train.batch_size
        return clips // workers + (rank < clips % workers)


def read_summary(run: str) -> TrainSummary | None:
    """Return the summary that the workers wrote at the end of the stream; None without one."""
    path = storage.join(run, SUMMARY)
    return TrainSummary(**json.loads(storage.read_bytes(path))) if storage.exists(path) else None


# ---------------------------------------------------------------- what is left


def remaining_visits(job: TrainJob) -> list[ShardVisit]:
    """Return the visits that the stream still has to make.

    They follow from the ledger of the newest checkpoint and from what the store has now.
    """
    checkpoint = newest_checkpoint(job.run, load_ledger)
    ledger = checkpoint[1] if checkpoint else Ledger()
    deterministic = job.spec.deterministic
    if job.writers is None:
        return visits_to_stream(job.visits, ledger, None, StoredParts(), deterministic)
    store = job.writers.finish()
    stored = store.list_parts().without(job.broken)
    return visits_to_stream(job.visits, ledger, store, stored, deterministic)


def remaining_stream(job: TrainJob) -> Dataset:
    """Build the stream of the clips that are not in the ledger of the newest checkpoint."""
    hide_user_errors()  # in Ray Train's controller, which calls this
    options = RowOptions(writers=job.writers)
    return build_examples(job.stream, remaining_visits(job), job.coordinator, options)


# ---------------------------------------------------------------- from controller to worker


def open_stream(job: TrainJob) -> Iterator[pa.Table]:
    """Return this worker's batches; the first is requested at once, while torch is imported.

    There are none if the target store has all clips that are left.
    """
    if job.all_stored:
        return iter(())
    context = ray.train.get_context()
    stream = ray.train.get_dataset_shard(STREAM).iter_batches(
        batch_size=job.share(context.get_world_rank(), context.get_world_size()),
        batch_format="pyarrow",
        prefetch_batches=1,  # with more, the first batch would wait for them
    )
    batches = iter(stream)
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, batches, None)
    thread.shutdown(wait=False)  # the thread ends with the first batch

    def all_batches() -> Iterator[pa.Table]:
        if (batch := first.result()) is not None:
            yield batch
            yield from batches

    return all_batches()


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """What a worker sends to the others before a step.

    Attributes:
        rows: Its clips, without content.
        probabilities: [rows, teachers, emotions], see `teacher_probabilities`.
        failure: The error that ended its stream, if any.
        check_notices: All workers shall check for preemption notices; the first one decides.
    """

    rows: Sequence[Provenance]
    probabilities: NDArray[np.float32]
    failure: LiserError | None
    check_notices: bool


def next_clips(batches: Iterator[pa.Table]) -> tuple[list[Example], LiserError | None]:
    """Return the next clips of a worker; or the user's error that ended its stream."""
    try:
        table = next(batches, None)
    except (LiserError, ray.exceptions.RayError) as error:
        # What a stage raises is both, in a class of Ray's that no other process can unpickle.
        cause = unwrap_ray_error(error)
        if isinstance(cause, LiserError):
            return [], cause
        raise
    return (to_examples(table) if table is not None else []), None


def new_clips(
    rank: int,
    rows: Sequence[Example],
    messages: Sequence[WorkerMessage],
    are_new: Sequence[bool],
) -> list[Example]:
    """Return the clips of a worker that are new and not rejected.

    Args:
        rank: The worker.
        rows: Its clips.
        messages: What every worker has for this step, in rank order.
        are_new: Which clips of all messages are new, in their order.
    """
    first = sum(len(message.rows) for message in messages[:rank])
    own = are_new[first : first + len(rows)]
    return [row for row, new in zip(rows, own, strict=True) if new and not row.rejected]


class UnevenSplit(DataConfig):
    """Gives every row to exactly one worker; Ray's own split drops an uneven tail."""

    def __init__(self, options: ExecutionOptions, rows_per_step: int | None) -> None:
        """Create the split.

        Args:
            options: How Ray Data executes the dataset.
            rows_per_step: Rows of the stream that make a step, each worker's share in turn, so
                that the clips of a step and their workers depend on the order of the stream
                alone. None: blocks go to the worker that has least.
        """
        super().__init__(execution_options=options, enable_shard_locality=False)
        self._rows_per_step = rows_per_step

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        """Return the data iterators of each worker, by dataset name."""
        splits = {}
        for name, dataset in datasets.items():
            dataset = dataset.copy(dataset)
            dataset.context.execution_options = self._resolve_execution_options(name)
            if self._rows_per_step:
                rows = self._rows_per_step // world_size
                dataset = dataset.repartition(target_num_rows_per_block=rows, strict=True)
            splits[name] = dataset.streaming_split(world_size, equal=False)
        return [{name: parts[rank] for name, parts in splits.items()} for rank in range(world_size)]


class ShareGpus(Backend):
    """Makes the GPUs of a node visible to all of its workers, as NCCL needs them."""

    share_cuda_visible_devices = True


class JoinInWorkers(BackendConfig):
    """Leaves the process group to the workers (`process_group.joined`).

    Ray's own `TorchConfig` makes its controller load torch before it starts a worker.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that Ray Train sets up."""
        return ShareGpus


class LogLostWorkers(UserCallback):
    """Logs, from Ray Train's controller, which workers were lost and why."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Log one line for each worker."""
        for rank, error in worker_exceptions.items():
            cause = one_line(unwrap_ray_error(error))
            logger.warning(
                "train worker %d was lost: %s; all workers restart from the newest checkpoint, "
                "unless `train.max_failures` is reached",
                rank,
                cause,
            )
