"""Examples -> student: Ray Train's workers over the stream, until all of it is in the weights.

When a worker or a node is lost, or their number changes, Ray starts the workers anew, and they go
on from the newest checkpoint: `streaming.rest_of` makes the stream of what its ledger has not seen.
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
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from liser_dist import cluster
from liser_dist.elastic import ElasticTrainer
from liser_dist.pipeline import execution_options, ours_in
from liser_dist.records import Example
from liser_dist.streaming import UnevenSplit, Watch, WorkersJoinThemselves, open_stream, rest_of
from liser_dist.train_job import STREAM, Summary, TrainJob, last_summary, left_to_teach

logger = logging.getLogger(__name__)


def train_students(job: TrainJob, clips: Mapping[str, Sequence[Example]]) -> Summary:
    """Run the job's train workers over what is left of the stream.

    `clips`: the labelled ones that each of them mixes in, under "labelled", and "validation".

    Raises LiserError where the data or the spec are at fault.
    """
    with tempfile.TemporaryDirectory(prefix="liser-train-") as scratch:
        if job.keeping is not None:
            job = replace(job, broken=ray.get(job.desk.take_broken.remote()))
            job = replace(job, taught_before=not left_to_teach(job))
        config = {
            "job": job,
            "labelled": ray.put(clips.get("labelled", [])),
            "validation": ray.put(clips.get("validation", [])),
        }
        try:
            _trainer(job, config, scratch).fit()
        except ray.train.TrainingFailedError as error:
            raise ours_in(error) from error
    if failure := ray.get(job.desk.failure.remote()):
        raise failure
    summary = last_summary(job.run)
    assert summary is not None, "the first worker leaves one"
    return summary


def _trainer(job: TrainJob, config: dict[str, Any], scratch: str) -> DataParallelTrainer:
    spec, resources, train = job.spec, job.spec.resources, job.spec.train
    per_worker = {"CPU": resources.worker_cpus}
    if resources.worker_gpus:
        per_worker["GPU"] = resources.worker_gpus
    rows_in_turn = train.batch_size if spec.deterministic else None
    least, most = train.worker_bounds
    trainer = DataParallelTrainer if least == most else partial(ElasticTrainer, spec=spec)
    return trainer(
        _work,
        train_loop_config=config,
        backend_config=WorkersJoinThemselves(),
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=resources.worker_gpus > 0,
            resources_per_worker=per_worker,
            label_selector=cluster.place(resources.pools.students) or None,
            elastic_resize_monitor_interval_s=train.resize_every_s,
        ),
        run_config=RunConfig(
            name=spec.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=train.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[Watch()],
        ),
        datasets={} if job.taught_before else {STREAM: partial(rest_of, job)},
        dataset_config=UnevenSplit(execution_options(spec), rows_in_turn),
    )


def _work(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker: there alone torch is loaded.

    Meanwhile the pipeline starts.
    """
    stream = open_stream(config["job"])
    from liser_dist.worker import work

    work(config, stream)
