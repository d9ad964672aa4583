"""Shards -> examples, as one Ray Dataset over all epochs of a run.

1. `_read`   a ShardVisit to its Samples         tasks
2. `Decode`  Sample to Clip                      CPU actors, a guarded child each
3. `Teach`   Clip to Example                     GPU actors, both teachers in each
             and a copy for the target store     writers' actors

No stage changes the number of rows: a rejected clip travels on, empty but for its reason. Ray ends
a pipeline's actors with each execution, which is why the epochs are one dataset.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
from pyroaring import BitMap
from ray.data import (
    ActorPoolStrategy,
    DataContext,
    Dataset,
    ExecutionOptions,
    ExecutionResources,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from liser_dist import cluster
from liser_dist.allocation import keep_freed_tables
from liser_dist.desk import Desk, Progress
from liser_dist.errors import CheckpointError, LiserError
from liser_dist.records import Example, Provenance, Sample
from liser_dist.shards import ShardVisit, read_samples
from liser_dist.spec import DistillSpec
from liser_dist.stages import Decode, Keeping, Teach
from liser_dist.tables import to_examples, to_table
from liser_dist.targets import StretchWriter, TargetStore, open_store
from liser_dist.windows import Windows

# Blocks are what Ray schedules, moves and splits: small ones keep the first batch near and the
# object store empty, larger ones cost the scheduler less.
BLOCK_BYTES = 2**20
DECODE_ROWS = 16
READ_BYTES = 4 * 2**20
IN_FLIGHT_BYTES = 32 * 2**20  # in the object store, for each actor of the pipeline
TEACHERS_PER_WRITER = 8
DESK_GOES_S = 5.0
# It tells in each process that there are no progress bars, which is as we want it.
logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
# Of a teacher on a GPU: what Ray spends on a task, and 0.1 s until the next, count there.
BATCHES_A_TASK = 4


def open_desk(run: str | None = None) -> Any:
    """The run's desk, as an actor on the job's own node: it lives as long as the job.

    Raises CheckpointError where another job of this cluster has a desk for the same `run`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    if run is not None:
        options |= {"name": run, "namespace": "liser_dist"}
    desk = ray.remote(Desk).options(scheduling_strategy=here, **options)
    # That of a driver that was killed goes within seconds.
    patiently = Retrying(
        retry=retry_if_exception_type(ValueError),  # Ray's word for a name that is taken
        stop=stop_after_delay(DESK_GOES_S),
        wait=wait_fixed(0.5),
        reraise=True,
    )
    try:
        return patiently(desk.remote)
    except ValueError as error:
        raise CheckpointError(
            f"another job is at work on the run {run}, or was a moment ago: wait for it, or give "
            "another `name`"
        ) from error


def open_keeping(spec: DistillSpec, versions: Mapping[str, str]) -> Keeping | None:
    """The job's target store with its writers; none of these where it takes nothing.

    `versions`: of the run's shards, by place.
    """
    store = open_store(spec, versions)
    if store is None:
        return None
    teachers = spec.resources.teachers[1]
    count = -(-teachers // TEACHERS_PER_WRITER) if store.writable else 0
    options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": "SPREAD"}
    there = cluster.place(spec.resources.pools.teachers)
    writer = ray.remote(StretchWriter).options(**options, label_selector=there)
    return Keeping(store, [writer.remote(store) for _ in range(count)])


def finish_keeping(keeping: Keeping) -> TargetStore:
    """Waits until what is complete was written; the store, and whether it still takes anything."""
    failures = ray.get([writer.finish.remote() for writer in keeping.writers])
    return dataclasses.replace(keeping.store, writable=keeping.store.writable and not any(failures))


def read_progress(desk: Any) -> Progress:
    found: Progress = ray.get(desk.progress.remote())
    return found


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Whether what is being logged is about something else than a LiserError."""
    error = (record.exc_info or sys.exc_info())[1]
    return error is None or not isinstance(ours_in(error), LiserError)


class TellOursOnce(ExecutionCallback):
    """What the user can mend is the job's last line; Ray Data would log it with its traceback."""

    def before_execution_starts(self, executor: Any) -> None:
        for who in ("execution.streaming_executor_state", "iterator.stream_split_iterator"):
            logging.getLogger(f"ray.data._internal.{who}").addFilter(_is_not_ours)


class ForgetBlocks(ExecutionCallback):
    """Ray Data would remember every block of every stage until the end: 200 MB a million clips."""

    def on_execution_step(self, executor: Any) -> None:
        for stage in executor._topology or ():
            getattr(stage, "_output_blocks_stats", []).clear()


def build_examples(
    spec: DistillSpec,
    visits: Sequence[ShardVisit],
    desk: Any,
    *,
    keeping: Keeping | None = None,
    kept_alone: bool = False,
    labelled: bool = False,
    taught: Collection[str] | None = None,
) -> Dataset:
    """The stream of a run: one row a clip of each visit, but for those that it has finished.

    `keeping`: where each row is kept beside; `kept_alone`: nobody but the store wants to know what
    is in a row. `taught`: the shards whose clips the teachers are asked about; all, when not given.
    Nothing runs until the dataset is read.
    """
    set_context(spec)
    clips = decode_samples(spec, visits, desk, labelled)
    return teach_clips(
        clips, spec, labelled=labelled, taught=taught, keeping=keeping, kept_alone=kept_alone
    )


def set_context(spec: DistillSpec) -> None:
    """How Ray Data is to run what is built from here on."""
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options = execution_options(spec)
    context.custom_execution_callback_classes = [ForgetBlocks, TellOursOnce]
    # A teacher that is loaded stays: Ray would end one as soon as it has little to do.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0


def decode_samples(
    spec: DistillSpec, visits: Sequence[ShardVisit], desk: Any, labelled: bool
) -> Dataset:
    """Rows of Clip."""
    resources = spec.resources
    there = cluster.place(resources.pools.decoders)
    items = [
        {"epoch": v.epoch, "shard": v.shard, "version": v.version,
         "finished": v.finished.serialize()}
        for v in visits
    ]  # fmt: skip
    return (
        ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        .map_batches(
            _read,
            fn_kwargs={"labelled": labelled},
            batch_size=1,
            batch_format="pyarrow",
            # Ray Data knows no pools: decoders may take all CPUs of theirs, and a reader that then
            # wanted one would wait for ever. It mostly waits for S3.
            num_cpus=0,
            label_selector=there,
            compute=ray.data.TaskPoolStrategy(size=resources.readers),
        )
        .map_batches(
            Decode,
            fn_constructor_kwargs={
                "clip": spec.clip, "windows": Windows.of(spec, centred=labelled), "desk": desk,
            },
            batch_size=DECODE_ROWS,
            batch_format="pyarrow",
            num_cpus=resources.decoder_cpus,
            label_selector=there,
            compute=_pool(resources.decoders),
        )
    )  # fmt: skip


def teach_clips(clips: Dataset, spec: DistillSpec, **how: Any) -> Dataset:
    """Rows of Example from rows of Clip; `how`: see `Teach`."""
    batches = BATCHES_A_TASK if spec.resources.teacher_gpus else 1
    return clips.map_batches(
        Teach,
        fn_constructor_kwargs={"spec": spec, **how},
        batch_size=batches * spec.teachers.batch_size,
        batch_format="pyarrow",
        num_cpus=spec.resources.teacher_cpus,
        num_gpus=spec.resources.teacher_gpus or None,
        label_selector=cluster.place(spec.resources.pools.teachers),
        compute=_pool(spec.resources.teachers),
    )


def _pool(bounds: tuple[int, int]) -> ActorPoolStrategy:
    least, most = bounds
    return ActorPoolStrategy(min_size=least, max_size=most)


def execution_options(spec: DistillSpec) -> ExecutionOptions:
    """In order where that is asked for, and with so much in flight that nobody waits, no more.

    What is decoded far ahead of the teachers is memory, and CPU that the teachers wanted.
    """
    actors = spec.resources.decoders[1] + spec.resources.teachers[1]
    in_flight = ExecutionResources(object_store_memory=IN_FLIGHT_BYTES * actors)
    return ExecutionOptions(preserve_order=spec.deterministic, resource_limits=in_flight)


def _read(visits: pa.Table, labelled: bool) -> Iterator[pa.Table]:
    """Rows of Sample. Small tables, so that decoding starts before the shard is read."""
    keep_freed_tables()
    for item in visits.to_pylist():
        visit = ShardVisit(**{**item, "finished": BitMap.deserialize(item["finished"])})
        rows: list[Provenance] = []
        size_bytes = 0
        for sample in read_samples(visit, labelled=labelled):
            rows.append(sample)
            size_bytes += len(sample.video)
            if len(rows) == DECODE_ROWS or size_bytes > READ_BYTES:
                yield to_table(rows, Sample)
                rows, size_bytes = [], 0
        yield to_table(rows, Sample)


def read_all(examples: Dataset) -> list[Example]:
    """Every example of a small dataset, by shard and index. Raises LiserError."""
    try:
        rows = [
            example
            for batch in examples.iter_batches(batch_size=64, batch_format="pyarrow")
            for example in to_examples(batch)
        ]
    except ray.exceptions.RayError as error:
        raise ours_in(error) from error
    return sorted(rows, key=lambda example: (example.shard, example.index))


def read_kept(examples: Dataset) -> Iterator[int]:
    """How many rows came, as they come. Raises LiserError."""
    try:
        for batch in examples.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield len(batch)
    except ray.exceptions.RayError as error:
        raise ours_in(error) from error


def ours_in(error: BaseException) -> BaseException:
    """The LiserError that a task or worker raised, out of what Ray wrapped it in; else `error`."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, LiserError):
            return getattr(one, "cause", one)  # Ray's own double of it carries its traceback
        if id(one) not in seen:
            seen.add(id(one))
            inner = [getattr(one, "cause", None), one.__cause__]
            inner += [getattr(one, "controller_failure", None)]
            inner += list((getattr(one, "worker_failures", None) or {}).values())
            waiting += [other for other in inner if isinstance(other, BaseException)]
    return error
