"""Builds the stream of examples from shards, as one Ray Dataset over all epochs of a run.

1. `_read`   reads shards: each clip becomes a Sample      tasks
2. `Decode`  decodes a Sample into a Clip                  CPU actors, each with a child process
3. `Teach`   adds the teachers' targets: an Example        GPU actors, all teachers in each; a copy
                                                           goes to the target store's writers

No stage changes the number of rows: a rejected clip stays a row, empty except for its reason. Ray
ends a pipeline's actors with each execution and would load the teachers again, which is why all
epochs are one dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from liser_dist.cluster.connect import pool_selector
from liser_dist.cluster.ray_data_internals import ForgetBlockStats, HideUserErrors, silence_progress
from liser_dist.cluster.ray_errors import unwrap_ray_error
from liser_dist.config.stream import StreamSpec
from liser_dist.data.process import reuse_freed_memory_for_arrow
from liser_dist.data.shard_order import group_visits, read_in_turn
from liser_dist.data.shards import ShardVisit
from liser_dist.pipeline.stages import Decode, RowOptions, Teach
from liser_dist.pipeline.tables import to_examples, to_table
from liser_dist.pipeline.windows import Windows
from liser_dist.records import Example, Provenance, Row, Sample

# Ray schedules, moves and splits blocks. Small blocks bring the first batch early and leave the
# object store empty; larger ones cost the scheduler less.
BLOCK_BYTES = 2**20
DECODE_ROWS = 16
READ_BYTES = 4 * 2**20
IN_FLIGHT_BYTES = 32 * 2**20  # in the object store, for each actor of the pipeline
# Teachers on a GPU get several batches per task: there, Ray's cost of a task and the 0.1 s until
# the next one count.
BATCHES_A_TASK = 4
silence_progress()


def build_examples(
    stream: StreamSpec,
    visits: Sequence[ShardVisit],
    coordinator: Any,
    options: RowOptions,
) -> Dataset:
    """Build the dataset of the clips of some shard visits. Nothing runs until it is read.

    Args:
        stream: How clips are decoded and what the teachers compute.
        visits: The shards to read, in order, each with the clips that are skipped.
        coordinator: The run's coordinator actor.
        options: How the clips of these shards are treated.

    Returns:
        A dataset with one row of Example per clip.
    """
    set_context(stream)
    clips = decode_samples(stream, visits, coordinator, labelled=options.labelled)
    return teach_clips(clips, stream, options)


def set_context(stream: StreamSpec) -> None:
    """Set how Ray Data runs the datasets that this process builds from now on."""
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options = execution_options(stream)
    context.custom_execution_callback_classes = [ForgetBlockStats, HideUserErrors]
    # Otherwise Ray Data raises an error of its own, and ours is lost when that is pickled.
    context.raise_original_map_exception = True
    # A loaded teacher stays: Ray would end an actor as soon as it has little to do.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0


def decode_samples(
    stream: StreamSpec, visits: Sequence[ShardVisit], coordinator: Any, *, labelled: bool
) -> Dataset:
    """Build the first two stages: rows of Clip from shards.

    Args:
        stream: How clips are decoded.
        visits: The shards to read, in order, each with the clips that are skipped.
        coordinator: The run's coordinator actor.
        labelled: The clips have labels; the window in their middle is used.
    """
    resources = stream.resources
    selector = pool_selector(resources.pools.decoders)
    windows = Windows.of(stream, centred=labelled)
    items = [{"visits": [_to_item(v) for v in group]} for group in group_visits(visits)]
    return (
        ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        .map_batches(
            _read,
            fn_kwargs={"labelled": labelled},
            batch_size=1,
            batch_format="pyarrow",
            # Ray Data does not know pools: decoders may take all CPUs of theirs, and a reader that
            # asked for one would wait for ever. Readers mostly wait for S3.
            num_cpus=0,
            label_selector=selector,
            compute=ray.data.TaskPoolStrategy(size=resources.readers),
        )
        .map_batches(
            Decode,
            fn_constructor_kwargs={
                "clip": stream.clip, "windows": windows, "coordinator": coordinator,
            },
            batch_size=DECODE_ROWS,
            batch_format="pyarrow",
            num_cpus=resources.decoder_cpus,
            label_selector=selector,
            compute=_actor_pool(resources.decoders),
        )
    )  # fmt: skip


def teach_clips(clips: Dataset, stream: StreamSpec, options: RowOptions) -> Dataset:
    """Build the last stage: rows of Example from rows of Clip."""
    resources = stream.resources
    batches = BATCHES_A_TASK if resources.teacher_gpus else 1
    return clips.map_batches(
        Teach,
        fn_constructor_kwargs={"stream": stream, "options": options},
        batch_size=batches * stream.teacher_batch_size,
        batch_format="pyarrow",
        num_cpus=resources.teacher_cpus,
        num_gpus=resources.teacher_gpus or None,
        label_selector=pool_selector(resources.pools.teachers),
        compute=_actor_pool(resources.teachers),
    )


def _actor_pool(bounds: tuple[int, int]) -> ActorPoolStrategy:
    minimum, maximum = bounds
    return ActorPoolStrategy(min_size=minimum, max_size=maximum)


def execution_options(stream: StreamSpec) -> ExecutionOptions:
    """Preserve row order if deterministic; limit the object store to 32 MiB per actor.

    The limit is large enough that no actor waits. Clips that are decoded far ahead of the teachers
    would take memory, and CPU that the teachers need.
    """
    actors = stream.resources.decoders[1] + stream.resources.teachers[1]
    in_flight = ExecutionResources(object_store_memory=IN_FLIGHT_BYTES * actors)
    return ExecutionOptions(preserve_order=stream.deterministic, resource_limits=in_flight)


def _to_item(visit: ShardVisit) -> Row:
    return {
        "epoch": visit.epoch,
        "shard": visit.shard,
        "version": visit.version,
        "finished": visit.finished.serialize(),
    }


def _read(groups: pa.Table, labelled: bool) -> Iterator[pa.Table]:
    """Yield rows of Sample, in small tables so that decoding starts before a shard is read."""
    reuse_freed_memory_for_arrow()
    for group in groups["visits"].to_pylist():
        visits = [
            ShardVisit(**{**item, "finished": BitMap.deserialize(item["finished"])})
            for item in group
        ]
        rows: list[Provenance] = []
        size_bytes = 0
        for sample in read_in_turn(visits, labelled=labelled):
            rows.append(sample)
            size_bytes += len(sample.video)
            if len(rows) == DECODE_ROWS or size_bytes > READ_BYTES:
                yield to_table(rows, Sample)
                rows, size_bytes = [], 0
        yield to_table(rows, Sample)


def read_all(examples: Dataset) -> list[Example]:
    """Run a small dataset and return its examples by shard and index.

    Raises:
        LiserError: A stage raised it.
    """
    try:
        rows = [
            example
            for batch in examples.iter_batches(batch_size=64, batch_format="pyarrow")
            for example in to_examples(batch)
        ]
    except ray.exceptions.RayError as error:
        raise unwrap_ray_error(error) from error
    return sorted(rows, key=lambda example: (example.shard, example.index))


def count_rows(examples: Dataset) -> Iterator[int]:
    """Run a dataset and yield the numbers of rows as they arrive.

    Raises:
        LiserError: A stage raised it.
    """
    try:
        for batch in examples.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield len(batch)
    except ray.exceptions.RayError as error:
        raise unwrap_ray_error(error) from error
