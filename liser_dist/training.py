"""Examples -> student: Ray Train's workers over the stream, until all of it is in the weights.

When a worker or a node is lost, or their number changes, Ray starts the workers anew, and they go
on from the newest checkpoint: `rest_of` makes the stream of what its ledger has not seen.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.data import Dataset, ExecutionOptions
from ray.train import (
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer

from liser_dist import storage
from liser_dist.checkpoints import load_newest
from liser_dist.elastic import ElasticTrainer
from liser_dist.ledger import Ledger
from liser_dist.pipeline import build_examples, execution_options, finish_keeping, ours_in
from liser_dist.records import Example
from liser_dist.schedule import NOTHING, to_teach
from liser_dist.shards import ShardVisit
from liser_dist.train_loop import STREAM, SUMMARY, Summary, TrainJob, TrainLoop

logger = logging.getLogger(__name__)


def rest_of(job: TrainJob) -> Dataset:
    """The stream of the clips that are to be taught: see `to_teach`."""
    return build_examples(job.spec, left_to_teach(job), job.desk, keeping=job.keeping)


def left_to_teach(job: TrainJob) -> list[ShardVisit]:
    """By the newest checkpoint's ledger, and by what the store has now."""
    newest = load_newest(job.run)
    ledger = newest[1].ledger if newest else Ledger()
    if job.keeping is None:
        return to_teach(job.visits, ledger, None, NOTHING, job.spec.deterministic)
    store = finish_keeping(job.keeping)
    stored = store.find().without(job.broken)
    return to_teach(job.visits, ledger, store, stored, job.spec.deterministic)


def train_students(job: TrainJob, clips: Mapping[str, Sequence[Example]]) -> Summary:
    """Run the job's train workers over what is left of the stream.

    `clips`: the labelled ones that each of them mixes in, under "labelled", and "validation".

    Raises LiserError where the data or the spec are at fault.
    """
    with tempfile.TemporaryDirectory(prefix="liser-train-") as scratch:
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


def last_summary(run: str) -> Summary | None:
    """What the workers left that last came to the end of a run's stream, if any did."""
    place = storage.join(run, SUMMARY)
    return Summary(**json.loads(storage.read_bytes(place))) if storage.exists(place) else None


def _trainer(job: TrainJob, config: dict[str, Any], scratch: str) -> TorchTrainer:
    spec, resources, train = job.spec, job.spec.resources, job.spec.train
    per_worker = {"CPU": resources.worker_cpus}
    if resources.worker_gpus:
        per_worker["GPU"] = resources.worker_gpus
    backend = "nccl" if resources.worker_gpus and torch.cuda.is_available() else "gloo"
    rows_in_turn = train.batch_size if spec.deterministic else None
    least, most = train.worker_bounds
    trainer = TorchTrainer if least == most else partial(ElasticTrainer, spec=spec)
    return trainer(
        _work,
        train_loop_config=config,
        torch_config=TorchConfig(backend=backend),
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=resources.worker_gpus > 0,
            resources_per_worker=per_worker,
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
    """The function that Ray Train runs in each worker."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message).1900s")
    job: TrainJob = config["job"]
    torch.set_num_threads(max(1, int(job.spec.resources.worker_cpus)))
    torch.use_deterministic_algorithms(job.spec.deterministic, warn_only=True)
    TrainLoop(job, ray.get(config["labelled"]), ray.get(config["validation"])).run()


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
            what = " ".join(str(ours_in(error)).split())[:300]
            logger.warning("train worker %d was lost; starting again: %s", rank, what)
