"""One run, from its spec to its result: the order of the steps, and nothing else.

1. `plan`   everything that can be wrong is found before Ray starts anything
2. `run`    labelled clips through the pipeline, then training, then scores and files
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from typing import Any

from liser_dist import cluster, pipeline, screen, training
from liser_dist.batches import Batcher
from liser_dist.checkpoints import (
    Checkpoint,
    is_whole,
    load_checkpoint,
    load_student,
)
from liser_dist.errors import ShardError
from liser_dist.evaluation import LabelledSet, score_student, score_teacher
from liser_dist.labelled import read_labelled
from liser_dist.learning import DISTILLED
from liser_dist.ledger import Rejection
from liser_dist.planning import Plan
from liser_dist.records import Example
from liser_dist.rejections import write_rejected
from liser_dist.results import (
    ClipCounts,
    DistillResult,
    Seconds,
    StudentScores,
    TeacherScores,
    write_result,
)
from liser_dist.runs import Run, open_run
from liser_dist.shards import shard_order
from liser_dist.spec import DistillSpec
from liser_dist.stages import Keeping
from liser_dist.train_loop import Summary, TrainJob

logger = logging.getLogger(__name__)


def run(job: Plan) -> tuple[DistillResult, str]:
    """Carry a plan out; returns the result and the place where it was written."""
    begun = open_run(job.spec, job.shards)
    job = replace(job, shards=begun.shards)
    if job.spec.synthetic is not None:
        screen.print_synthetic(job.spec.synthetic)
    if begun.goes_on:
        screen.console.print(f"going on with the run {begun.place}")
    cluster.start_ray(job.capacity)
    desk, keeping = pipeline.open_desk(), pipeline.open_keeping(job.spec, job.versions)
    labelled, rejected = read_labelled(job, desk, keeping)
    summary = train(job, begun, desk, keeping, labelled)
    checkpoint = load_checkpoint(summary.checkpoint)
    result = summarise(job, summary, checkpoint, labelled, rejected)
    write_rejected(begun.place, checkpoint.ledger.ever_trained, rejected)
    return result, write_result(begun.place, result)


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
    last = training.last_summary(begun.place)
    if last is not None and last.complete and is_whole(last.checkpoint):
        return last  # the driver was killed after it
    train_job = to_train_job(job, begun.place, desk, keeping)
    screen.console.print(f"distilling {train_job.clips} clips")
    passes = -1
    with screen.watched(lambda: pipeline.read_progress(desk), lambda: cluster.lack_of(job.spec)):
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
        if spec.loss.embedding and facts.embedding_dim
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
            for epoch in range(spec.train.epochs if counts(spec) else 0)
            for place, first in zip(places, firsts, strict=True)
        },
        clips=clips,
        desk=desk,
        keeping=keeping,
    )


def counts(spec: DistillSpec) -> bool:
    """Whether the student is the one that counts clips."""
    return spec.student.kind == "counting"


def summarise(
    job: Plan,
    summary: Summary,
    checkpoint: Checkpoint,
    labelled: Mapping[str, list[Example]],
    rejected: Mapping[str, Sequence[Rejection]],
) -> DistillResult:
    """The result of a run, with the test set scored once."""
    spec, ledger = job.spec, checkpoint.ledger
    test = labelled.get("test", [])
    students = {
        kind: score_kept(summary.checkpoint, kind, checkpoint, test) for kind in checkpoint.best
    }
    teachers = {name: score_heard(job, name, test) for name in job.teachers}
    now = time.time()
    return DistillResult(
        name=spec.name,
        seed=spec.seed,
        clips=ClipCounts(
            total=ledger.total,
            trained=ledger.trained,
            rejected=ledger.rejected,
            passes=ledger.passes,
            taught=checkpoint.state["taught"],
            labelled=sum(len(clips) for clips in labelled.values()),
            labelled_rejected=sum(len(rejected[name]) for name in labelled),
        ),
        steps=checkpoint.state["steps"],
        seconds=Seconds(
            to_first_step=(summary.first_step_at or now) - job.started,
            training=summary.training_s,
            total=now - job.started,
        ),
        clips_per_s=ledger.passes / summary.training_s if summary.training_s else 0.0,
        data_wait_share=summary.data_wait_share,
        student=students.pop(DISTILLED),
        label_only=students.pop("labels_only", None),
        comparisons=students,
        speech_teacher=teachers.get("speech"),
        face_teacher=teachers.get("face"),
        checkpoint=summary.checkpoint,
        spec_hash=spec.spec_hash,
    )


def score_kept(
    place: str, kind: str, checkpoint: Checkpoint, test: Sequence[Example]
) -> StudentScores:
    rate = checkpoint.state["learning_rates"][kind]
    if counts(checkpoint.spec):
        weights = sum(tensor.numel() for tensor in checkpoint.students.values())
        return StudentScores(params=weights, learning_rate=rate)
    student, _ = load_student(place, kind)
    if not test:
        return StudentScores(params=student.params, learning_rate=rate)
    scores = score_student(student, LabelledSet.of(test, Batcher.of(checkpoint.spec)))
    return StudentScores(
        params=student.params,
        learning_rate=rate,
        uar=scores.uar,
        war=scores.war,
        macro_f1=scores.macro_f1,
    )


def score_heard(job: Plan, name: str, test: Sequence[Example]) -> TeacherScores | None:
    scores = score_teacher(test, name, job.spec.emotions, job.teachers[name].known)
    return TeacherScores(**asdict(scores)) if scores is not None else None
