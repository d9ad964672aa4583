"""The result of a run: what became of its clips, and its students and teachers on the test set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from liser_dist.batches import Batcher
from liser_dist.checkpoints import Checkpoint, load_student
from liser_dist.evaluation import LabelledSet, score_student, score_teacher
from liser_dist.learning import DISTILLED
from liser_dist.ledger import Rejection
from liser_dist.planning import Plan
from liser_dist.records import Example
from liser_dist.results import ClipCounts, DistillResult, Seconds, StudentScores, TeacherScores
from liser_dist.train_job import Summary


def summarise(
    job: Plan,
    summary: Summary,
    checkpoint: Checkpoint,
    labelled: Mapping[str, list[Example]],
    rejected: Mapping[str, Sequence[Rejection]],
) -> DistillResult:
    """The result of a run, with the test set scored once."""
    spec, ledger = job.spec, checkpoint.ledger
    unsure, differing = checkpoint.state.get("doubts", [0] * 2)
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
            unsure=round(unsure),
            differing=round(differing),
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
    if checkpoint.spec.counts_clips:
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
