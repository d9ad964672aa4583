"""Runs one distillation job, by calling its steps in order.

1. decode the clips that have labels, for training and for scores    pipeline/labelled.py
2. train the student on the stream of clips                          trainer.py
3. score it, and write the files of the run                          summary.py
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from liser_dist import storage
from liser_dist.cluster.connect import require_reachable, start_ray
from liser_dist.console import output, print_synthetic, show_progress
from liser_dist.data.shard_order import shard_order
from liser_dist.errors import ShardError
from liser_dist.pipeline.coordinator import read_progress, start_coordinator
from liser_dist.pipeline.labelled import read_labelled
from liser_dist.pipeline.plan import DistillPlan, for_run, missing_capacity
from liser_dist.pipeline.schedule import stopped_within_epoch
from liser_dist.pipeline.store_writer import StoreWriters, open_store_writers
from liser_dist.records import TEACHERS, Example
from liser_dist.runs import tracking
from liser_dist.runs.checkpoint_files import is_intact, load_ledger
from liser_dist.runs.folder import open_run
from liser_dist.runs.rejections import write_rejected
from liser_dist.runs.results import DistillResult, write_result
from liser_dist.training.stream import TrainJob, TrainSummary, read_summary
from liser_dist.training.trainer import train_students

logger = logging.getLogger(__name__)


def run_distill(plan: DistillPlan) -> tuple[DistillResult, str]:
    """Carry out a plan: train the student, score it, write the result.

    Resumes the newest run of the job's name if that is unfinished.

    Returns:
        The result, and the path of its file.

    Raises:
        LiserError: The run ended for a reason that the user can fix.
    """
    require_reachable(plan.capacity)
    spec = plan.spec
    start_ray(plan.capacity)
    # Before the run is opened, so that another job on this cluster has changed nothing.
    coordinator = start_coordinator(storage.join(spec.output, spec.name))
    run = open_run(spec, plan.shards)
    plan = for_run(plan, run)
    if spec.synthetic is not None:
        print_synthetic(spec.synthetic)
    if run.resumed:
        output.print(f"resuming the run {run.place}")
    writers = open_store_writers(plan.stream, plan.versions)
    with tracking.tracked(spec.track, spec.model_dump(mode="json"), run) as trackers:
        if plan.labelled_shards:
            output.print("reading the labelled clips")
        labelled, rejected = read_labelled(plan.stream, plan.labelled_shards, coordinator, writers)
        job = to_train_job(plan, run.place, coordinator, writers)
        with trackers.following(lambda: read_progress(coordinator)):
            summary = train_to_the_end(job, labelled)
        # These load torch, which this process does not need before: the first step comes sooner.
        from liser_dist.runs.checkpoints import load_checkpoint
        from liser_dist.training.summary import predict_test_clips, summarise

        checkpoint = load_checkpoint(summary.checkpoint)
        predictions = predict_test_clips(
            plan, checkpoint, summary.checkpoint, labelled.get("test", [])
        )
        result = summarise(plan, summary, checkpoint, labelled, rejected, predictions)
        if predictions.probabilities:
            predictions.write(run.place)
        write_rejected(run.place, checkpoint.parts, checkpoint.ledger.ever_trained, rejected)
        path = write_result(run.place, result)
        trackers.log(result.numbers, result.steps)
    return result, path


def train_to_the_end(
    job: TrainJob,
    labelled: Mapping[str, list[Example]],
    train: Callable[[TrainJob, Mapping[str, list[Example]]], TrainSummary] = train_students,
) -> TrainSummary:
    """Train until every clip of every epoch is trained or rejected.

    Args:
        job: What every train worker is given.
        labelled: The clips of the labelled sets.
        train: Trains on what one stream and the target store have.

    Raises:
        ShardError: Some clips are missing, and reading their shards again gives none of them.
    """
    former = read_summary(job.run)
    if former is not None and former.complete and is_intact(former.checkpoint):
        return former  # the driver was killed after training had ended
    resources, workers = job.spec.resources, job.spec.train.worker_bounds[0]
    output.print(f"distilling a student from {job.clips} clips")
    passes = -1
    with show_progress(
        lambda: read_progress(job.coordinator), lambda: missing_capacity(resources, workers)
    ):
        while True:
            summary = train(job, labelled)
            if summary.complete:
                return summary
            if summary.passes == passes:
                raise ShardError(
                    f"only {summary.passes} of the expected ~{job.total_passes} clips from "
                    f"{job.spec.data.unlabelled} reached the train workers (each clip counts once "
                    "per epoch); the rest were lost, or their steps were skipped: submit the job "
                    "again, and it resumes from its last checkpoint"
                )
            passes = summary.passes
            _log_next_pass(job, summary)


def _log_next_pass(job: TrainJob, summary: TrainSummary) -> None:
    """Log why the run is not complete: clips were lost, or left to another stream on purpose."""
    ledger = load_ledger(summary.checkpoint)
    if job.writers is None or (job.spec.deterministic and stopped_within_epoch(job.visits, ledger)):
        logger.warning(
            "some clips have not been trained on, because they were lost with a process, or "
            "because a step with a NaN gradient was skipped; reading their shards again"
        )
    elif job.spec.deterministic:
        # The stream of a deterministic run with a store ends with the epoch.
        logger.info("an epoch is complete; starting the next one")
    else:
        logger.warning(
            "some clips have not been trained on, because the target store lacks them, or because "
            "a step with a NaN gradient was skipped; the run goes on with these clips"
        )


def to_train_job(
    plan: DistillPlan, run: str, coordinator: Any, writers: StoreWriters | None
) -> TrainJob:
    """Return the inputs of every train worker.

    Args:
        plan: The job, with the shards as they were when the run began.
        run: Path of the run.
        coordinator: The run's coordinator actor.
        writers: The run's target store.
    """
    spec, shards = plan.spec, plan.shards["unlabelled"]
    embeddings = {
        name: facts.embedding_dim
        for name, facts in plan.teachers.items()
        if spec.loss.uses_embeddings and facts.embedding_dim
    }
    none_known = (False,) * len(spec.emotions)
    speech, face = (
        plan.teachers[name].known if name in plan.teachers else none_known for name in TEACHERS
    )
    return TrainJob(
        spec=spec,
        identities=plan.identities,
        run=run,
        known=(speech, face),
        embeddings=embeddings,
        visits=shard_order(shards, spec.train.epochs, spec.seed),
        shards=shards,
        coordinator=coordinator,
        writers=writers,
    )
