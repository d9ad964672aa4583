"""One run, from a plan to its result: the order of the steps, and nothing else.

1. labelled clips through the pipeline    labelled.py
2. training                               training.py
3. scores and files                       scoring.py
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

from liser_dist import cluster, pipeline, planning, screen, tracking, training
from liser_dist.committed import is_whole
from liser_dist.errors import ShardError
from liser_dist.labelled import read_labelled
from liser_dist.planning import Plan
from liser_dist.records import Example
from liser_dist.rejections import write_rejected
from liser_dist.results import DistillResult, write_result
from liser_dist.runs import Run, open_run
from liser_dist.shards import shard_order
from liser_dist.stages import Keeping
from liser_dist.train_job import Summary, TrainJob, last_summary

logger = logging.getLogger(__name__)


def run(job: Plan) -> tuple[DistillResult, str]:
    """Carry a plan out; returns the result and the place where it was written."""
    cluster.require_reachable(job.capacity)
    begun = open_run(job.spec, job.shards)
    job = replace(job, shards=begun.shards)
    if job.spec.synthetic is not None:
        screen.print_synthetic(job.spec.synthetic)
    if begun.goes_on:
        screen.console.print(f"going on with the run {begun.place}")
    cluster.start_ray(job.capacity)
    desk = pipeline.open_desk(begun.place)
    keeping = pipeline.open_keeping(job.spec, job.versions)
    with tracking.tracked(job.spec, begun) as tracks:
        labelled, rejected = read_labelled(job, desk, keeping)
        with tracking.following(tracks, lambda: pipeline.read_progress(desk)):
            summary = train(job, begun, desk, keeping, labelled)
        # With torch, which nobody needed before: the first step is the sooner for it.
        from liser_dist.checkpoints import load_checkpoint
        from liser_dist.scoring import answer_test, summarise

        checkpoint = load_checkpoint(summary.checkpoint)
        answers = answer_test(job, checkpoint, summary.checkpoint, labelled.get("test", []))
        result = summarise(job, summary, checkpoint, labelled, rejected, answers)
        if answers.logits:
            answers.write(begun.place)
        write_rejected(begun.place, checkpoint.ledger.ever_trained, rejected)
        place = write_result(begun.place, result)
        tracks.tell(result.numbers, result.steps)
    return result, place


def train(
    job: Plan,
    begun: Run,
    desk: Any,
    keeping: Keeping | None,
    labelled: Mapping[str, list[Example]],
) -> Summary:
    """Train the students until every clip of every epoch was seen.

    Raises ShardError when a further pass over what is missing finds none of it.
    """
    last = last_summary(begun.place)
    if last is not None and last.complete and is_whole(last.checkpoint):
        return last  # the driver was killed after it
    train_job = to_train_job(job, begun.place, desk, keeping)
    screen.console.print(f"distilling {train_job.clips} clips")
    passes = -1
    with screen.watched(lambda: pipeline.read_progress(desk), lambda: planning.lack_of(job.spec)):
        while True:
            summary = training.train_students(train_job, labelled)
            if summary.complete:
                return summary
            if summary.passes == passes:
                raise ShardError(
                    f"some clips of {job.spec.data.unlabelled} were read and never came back; "
                    f"{summary.passes} did; submit the job again to go on"
                )
            passes = summary.passes
            logger.warning("clips were lost on their way; they are read once more")


def to_train_job(job: Plan, run_place: str, desk: Any, keeping: Keeping | None) -> TrainJob:
    spec, shards = job.spec, job.shards["unlabelled"]
    embeddings = {
        name: facts.embedding_dim
        for name, facts in job.teachers.items()
        if spec.loss.uses_embeddings and facts.embedding_dim
    }
    unknown = (False,) * len(spec.emotions)
    known = [job.teachers[n].known if n in job.teachers else unknown for n in ("speech", "face")]
    *firsts, clips = accumulate((shard.clips for shard in shards), initial=0)
    places = [shard.place for shard in shards]
    return TrainJob(
        spec=spec,
        run=run_place,
        known=(known[0], known[1]),
        embeddings=embeddings,
        visits=shard_order(shards, spec.train.epochs, spec.seed),
        first_clips={
            (epoch, place): epoch * clips + first
            for epoch in range(spec.train.epochs if spec.counts_clips else 0)
            for place, first in zip(places, firsts, strict=True)
        },
        clips=clips,
        desk=desk,
        keeping=keeping,
    )
