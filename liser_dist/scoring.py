"""The result of a run: what became of its clips, and what its students and teachers are worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from liser_dist.answers import Answers, Logits
from liser_dist.batches import Batcher
from liser_dist.checkpoints import Checkpoint, load_student
from liser_dist.evaluation import LabelledSet, Scores, answer_student, logits_of, score
from liser_dist.learning import DISTILLED
from liser_dist.ledger import Rejection
from liser_dist.planning import Plan
from liser_dist.records import Example
from liser_dist.results import ClipCounts, DistillResult, Seconds, StudentScores, TeacherScores
from liser_dist.train_job import Summary


def answer_test(job: Plan, checkpoint: Checkpoint, place: str, test: Sequence[Example]) -> Answers:
    """What the best of each kind of student, and the teachers, say of the test clips."""
    logits: dict[str, Logits] = {}
    if test and not job.spec.counts_clips:
        labelled = LabelledSet.of(test, Batcher.of(job.spec))
        for kind in checkpoint.best:
            student, _ = load_student(place, kind)
            logits[kind] = answer_student(student, labelled)
    if test:
        logits |= {
            f"{name}_teacher": logits_of(test, name, facts.known)
            for name, facts in job.teachers.items()
            if any(facts.known)
        }
    bare = [Example(**clip.provenance(), **clip.labels()) for clip in test]
    return Answers(bare, logits)


def summarise(
    job: Plan,
    summary: Summary,
    checkpoint: Checkpoint,
    labelled: Mapping[str, list[Example]],
    rejected: Mapping[str, Sequence[Rejection]],
    answers: Answers,
) -> DistillResult:
    """The result of a run, with the test set scored once."""
    spec, ledger = job.spec, checkpoint.ledger
    unsure, differing = checkpoint.state.get("doubts", [0] * 2)
    students = {kind: score_kept(summary.checkpoint, kind, checkpoint, answers)
                for kind in checkpoint.best}  # fmt: skip
    teachers = {name: score_heard(name, answers, spec.emotions) for name in job.teachers}
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


def score_kept(place: str, kind: str, checkpoint: Checkpoint, answers: Answers) -> StudentScores:
    rate = checkpoint.state["learning_rates"][kind]
    if checkpoint.spec.counts_clips:
        weights = sum(tensor.numel() for tensor in checkpoint.students.values())
        return StudentScores(params=weights, learning_rate=rate)
    student, _ = load_student(place, kind)
    scores = _scores_of(answers, kind, checkpoint.spec.emotions)
    found = {} if scores is None else {n: getattr(scores, n) for n in ("uar", "war", "macro_f1")}
    return StudentScores(params=student.params, learning_rate=rate, **found)


def score_heard(name: str, answers: Answers, emotions: Sequence[str]) -> TeacherScores | None:
    scores = _scores_of(answers, f"{name}_teacher", emotions)
    return TeacherScores(**asdict(scores)) if scores is not None else None


def _scores_of(answers: Answers, model: str, emotions: Sequence[str]) -> Scores | None:
    """None where it said nothing."""
    if model not in answers.logits:
        return None
    clips, logits = answers.of(model)
    if not clips:
        return None
    return score(np.array([emotions.index(clip.emotion) for clip in clips]), logits.argmax(axis=1))
