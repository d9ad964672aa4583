"""Runs the train workers with Ray Train until every clip of the stream has been trained on.

When a worker or a node is lost, or the number of workers changes, Ray starts all workers again.
They resume from the newest checkpoint, and `stream.remaining_stream` streams the clips that are
missing from its ledger, the record of clips that are trained or rejected. The number of elastic
workers follows the cluster and leaves room for the stages that feed them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from liser_dist.cluster.capacity import workers_that_fit
from liser_dist.cluster.connect import current_capacity, pool_selector
from liser_dist.cluster.ray_errors import unwrap_ray_error
from liser_dist.cluster.ray_train_internals import RunTrainer
from liser_dist.config.base import Bounds
from liser_dist.config.resources import ResourcesSpec
from liser_dist.pipeline.coordinator import CoordinatorCheckpoints, raise_failure
from liser_dist.pipeline.dataset import execution_options
from liser_dist.records import Example
from liser_dist.training.stream import (
    STREAM,
    JoinInWorkers,
    LogLostWorkers,
    TrainJob,
    TrainSummary,
    UnevenSplit,
    open_stream,
    read_summary,
    remaining_stream,
    remaining_visits,
)

logger = logging.getLogger(__name__)


def train_students(job: TrainJob, clips: Mapping[str, Sequence[Example]]) -> TrainSummary:
    """Run the job's train workers over what is left of the stream.

    Args:
        job: What every worker is given.
        clips: The labelled clips: "labelled" is mixed into each step, "validation" is scored.

    Returns:
        What the first worker left.

    Raises:
        LiserError: The data or the spec are at fault, so that no restart would help.
    """
    with tempfile.TemporaryDirectory(prefix="liser-train-") as scratch:
        if job.writers is not None:
            job = replace(job, broken=ray.get(job.coordinator.take_broken.remote()))
            job = replace(job, all_stored=not remaining_visits(job))
        config = {
            "job": job,
            "labelled": ray.put(clips.get("labelled", [])),
            "validation": ray.put(clips.get("validation", [])),
        }
        try:
            _trainer(job, config, scratch).fit()
        except ray.train.TrainingFailedError as error:
            raise_failure(job.coordinator)
            raise unwrap_ray_error(error) from error
    raise_failure(job.coordinator)
    summary = read_summary(job.run)
    assert summary is not None, "the first worker writes one"
    return summary


def worker_scaling(
    resources: ResourcesSpec, workers: int | tuple[int, int], resize_every_s: float = 60.0
) -> ScalingConfig:
    """Return how many train workers Ray starts, what each takes, and where.

    Args:
        resources: What one worker takes, and its pool.
        workers: Their number, or the fewest and the most.
        resize_every_s: How often Ray looks for room for more.
    """
    per_worker = {"CPU": resources.worker_cpus}
    if resources.worker_gpus:
        per_worker["GPU"] = resources.worker_gpus
    return ScalingConfig(
        num_workers=workers,
        use_gpu=resources.worker_gpus > 0,
        resources_per_worker=per_worker,
        label_selector=pool_selector(resources.pools.students) or None,
        elastic_resize_monitor_interval_s=resize_every_s,
    )


def _trainer(job: TrainJob, config: dict[str, Any], scratch: str) -> RunTrainer:
    spec, resources, train = job.spec, job.spec.resources, job.spec.train
    bounds = train.worker_bounds
    find_room = partial(_workers_with_room, resources, bounds)
    rows_per_step = train.batch_size if spec.deterministic else None
    return RunTrainer(
        _work,
        checkpoints=CoordinatorCheckpoints(job.coordinator),
        find_room=None if bounds[0] == bounds[1] else find_room,
        train_loop_config=config,
        backend_config=JoinInWorkers(),
        scaling_config=worker_scaling(resources, train.workers, train.resize_every_s),
        run_config=RunConfig(
            name=spec.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=train.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[LogLostWorkers()],
        ),
        datasets={} if job.all_stored else {STREAM: partial(remaining_stream, job)},
        dataset_config=UnevenSplit(execution_options(spec.stream), rows_per_step),
    )


def _work(config: dict[str, Any]) -> None:
    """Run in each worker of Ray Train. Only there is torch loaded, while the pipeline starts."""
    stream = open_stream(config["job"])
    from liser_dist.training.process_group import work

    work(config, stream)


def _workers_with_room(resources: ResourcesSpec, worker_bounds: Bounds) -> int:
    """Return how many train workers fit now beside the other stages."""
    return workers_that_fit(resources, worker_bounds, current_capacity())
