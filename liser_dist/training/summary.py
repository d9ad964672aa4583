"""Summarises a run: its clip counts, and the scores of its students and teachers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from liser_dist.pipeline.labelled import count_left_out
from liser_dist.pipeline.plan import DistillPlan
from liser_dist.records import Example
from liser_dist.runs.caveats import (
    warn_chance,
    warn_few_steps,
    warn_left_out,
    warn_one_emotion,
    warn_skipped_steps,
)
from liser_dist.runs.checkpoints import Checkpoint
from liser_dist.runs.disagreement import DisagreementRecord
from liser_dist.runs.ledger import Rejection
from liser_dist.runs.predictions import Predictions, Probabilities, probabilities_of
from liser_dist.runs.results import (
    DistillResult,
    RunClipCounts,
    Seconds,
    StudentScores,
    TeacherScores,
)
from liser_dist.students.batches import Batcher
from liser_dist.students.bootstrap import uar_interval
from liser_dist.students.pretrained import load_student
from liser_dist.students.scoring import LabelledSet, Scores, predict_logits, score, teacher_logits
from liser_dist.students.variants import DISTILLED
from liser_dist.training.stream import TrainSummary

RESAMPLES = 2000  # for the interval of the student's UAR


def predict_test_clips(
    plan: DistillPlan, checkpoint: Checkpoint, path: str, test: Sequence[Example]
) -> Predictions:
    """Return the predictions of the best student of each kind, and of the teachers.

    Args:
        plan: The job.
        checkpoint: The run's last checkpoint.
        path: Its path.
        test: The clips of the test set.
    """
    logits = {}
    if test and not plan.spec.counts_clips:
        labelled = LabelledSet.from_examples(test, Batcher.from_spec(plan.spec))
        for kind in checkpoint.best:
            student, _ = load_student(path, kind)
            logits[kind] = predict_logits(student, labelled)
    if test:
        logits |= {
            f"{name}_teacher": teacher_logits(test, name, facts.known)
            for name, facts in plan.teachers.items()
            if any(facts.known)
        }
    bare = [Example(**clip.provenance(), **clip.labels()) for clip in test]
    probabilities = {name: probabilities_of(of_model) for name, of_model in logits.items()}
    return Predictions(bare, plan.spec.emotions, probabilities)


def summarise(
    plan: DistillPlan,
    summary: TrainSummary,
    checkpoint: Checkpoint,
    labelled: Mapping[str, list[Example]],
    rejected: Mapping[str, Sequence[Rejection]],
    answers: Predictions,
) -> DistillResult:
    """Return the result of a run.

    Args:
        plan: The job.
        summary: What the train workers left.
        checkpoint: The run's last checkpoint.
        labelled: The clips of each labelled set.
        rejected: The rejected clips of each labelled set.
        answers: The predictions for the test set, which is scored here, once.
    """
    spec, ledger = plan.spec, checkpoint.ledger
    record = _read_disagreement(checkpoint)
    unsure = checkpoint.state.get("doubts", [0])[0]
    steps = checkpoint.state["steps"]
    students = {kind: score_student_kind(summary.checkpoint, kind, checkpoint, answers)
                for kind in checkpoint.best}  # fmt: skip
    teachers = {name: score_teacher(name, answers, spec.emotions) for name in plan.teachers}
    now = time.time()
    return DistillResult(
        name=spec.name,
        seed=spec.seed,
        clips=RunClipCounts(
            total=ledger.total,
            trained=ledger.trained,
            rejected=ledger.rejected,
            passes=ledger.passes,
            taught=checkpoint.state["taught"],
            unsure=round(unsure),
            compared=record.compared,
            differing=record.differing,
            **count_labelled(labelled, rejected),
        ),
        steps=steps,
        seconds=Seconds(
            to_first_step=(summary.first_step_at or now) - plan.started,
            training=summary.training_s,
            total=now - plan.started,
        ),
        clips_per_s=ledger.passes / summary.training_s if summary.training_s else 0.0,
        data_wait_share=summary.data_wait_share,
        student=students.pop(DISTILLED),
        label_only=students.pop("labels_only", None),
        comparisons=students,
        speech_teacher=teachers.get("speech"),
        face_teacher=teachers.get("face"),
        teachers=dict(plan.identities),
        teacher_shares=record.shares(spec.emotions),
        warnings=_collect_warnings(plan, checkpoint, summary, labelled, rejected, answers),
        checkpoint=summary.checkpoint,
        spec_hash=spec.spec_hash,
    )


def _collect_warnings(
    plan: DistillPlan,
    checkpoint: Checkpoint,
    summary: TrainSummary,
    labelled: Mapping[str, list[Example]],
    rejected: Mapping[str, Sequence[Rejection]],
    answers: Predictions,
) -> list[str]:
    """Return why the scores say less than they seem to. Arguments: see `summarise`."""
    spec, state = plan.spec, checkpoint.state
    validate_every = spec.train.validate_every if labelled.get("validation") else None
    warnings = [
        *warn_few_steps(state["steps"], spec.train.batch_size, validate_every),
        *warn_skipped_steps(state.get("skipped_steps", 0), state["steps"]),
        *warn_of_teachers(_read_disagreement(checkpoint), spec.emotions),
        *warn_of_student(plan, summary.checkpoint, labelled, answers),
    ]
    for name in labelled:
        warnings += warn_left_out(f"data.{name}", count_left_out(rejected[name]))
    return warnings


def _read_disagreement(checkpoint: Checkpoint) -> DisagreementRecord:
    """Return the teachers' predictions; empty for a checkpoint of a version that saved none."""
    saved = checkpoint.state.get("opinions")
    if saved is None:
        return DisagreementRecord([False] * len(checkpoint.spec.emotions))
    return DisagreementRecord.from_json(saved)


# ---------------------------------------------------------------- warnings


def warn_of_teachers(record: DisagreementRecord, emotions: Sequence[str]) -> list[str]:
    """Warn of teachers that gave nearly all clips the same emotion."""
    return [
        warning
        for name, shares in record.shares(emotions).items()
        for warning in warn_one_emotion(f"the {name} teacher", "unlabelled clips", shares)
    ]


def warn_of_student(
    plan: DistillPlan,
    path: str,
    labelled: Mapping[str, Sequence[Example]],
    answers: Predictions,
) -> list[str]:
    """Warn of a student that may be guessing, by the test clips, or else by validation clips.

    Args:
        plan: The job.
        path: Path of the run's last checkpoint.
        labelled: The clips of each labelled set.
        answers: The predictions for the test set.
    """
    if plan.spec.counts_clips:
        return []
    if DISTILLED in answers.probabilities:
        clips, probabilities = answers.of(DISTILLED)
        return warn_of_predictions("test clips", clips, probabilities, plan.spec.emotions)
    validation = labelled.get("validation", [])
    if not validation:
        return []
    student, _ = load_student(path, DISTILLED)
    clips_of_set = LabelledSet.from_examples(validation, Batcher.from_spec(plan.spec))
    probabilities = probabilities_of(predict_logits(student, clips_of_set))
    return warn_of_predictions("validation clips", validation, probabilities, plan.spec.emotions)


def warn_of_predictions(
    name: str, clips: Sequence[Example], probabilities: Probabilities, emotions: Sequence[str]
) -> list[str]:
    """Warn of a student that may be guessing.

    Args:
        name: The clips in a sentence.
        clips: Labelled clips.
        probabilities: What the student gives for them [clips, emotions].
        emotions: Names of the emotions.
    """
    if not clips:
        return []
    labels = np.array([emotions.index(clip.emotion) for clip in clips])
    predicted = probabilities.argmax(axis=1)
    counts = np.bincount(predicted, minlength=len(emotions))
    shares = {emotion: count / len(clips) for emotion, count in zip(emotions, counts, strict=True)}
    # A clip whose speaker is not known counts as a speaker of its own.
    speakers = [clip.speaker or f"{clip.shard} {clip.index}" for clip in clips]
    interval = uar_interval(labels, predicted, speakers, len(emotions), RESAMPLES)
    uar = score(labels, predicted).uar
    return [
        *warn_one_emotion("the student", name, shares),
        *warn_chance("the student", name, uar, interval, len(np.unique(labels))),
    ]


# ---------------------------------------------------------------- counts and scores


def count_labelled(
    labelled: Mapping[str, Sequence[Example]], rejected: Mapping[str, Sequence[Rejection]]
) -> dict[str, Any]:
    """Return the counts of labelled clips for a result.

    Args:
        labelled: The clips of each labelled set that were used.
        rejected: Those that were not, by set.
    """
    by_set = {name: len(clips) for name, clips in labelled.items()}
    unused = [rejection for name in labelled for rejection in rejected[name]]
    left_out = count_left_out(unused)
    return {
        "labelled": sum(by_set.values()),
        "labelled_by_set": by_set,
        "labelled_rejected": len(unused) - sum(left_out.values()),
        "labelled_left_out": left_out,
    }


def score_student_kind(
    path: str, kind: str, checkpoint: Checkpoint, answers: Predictions
) -> StudentScores:
    """Return the size and the scores of one kind of student; a counting student has no scores.

    Args:
        path: Path of the checkpoint.
        kind: "distilled", or one of the job's comparisons.
        checkpoint: The run's last checkpoint.
        answers: The predictions for the test set.
    """
    rate = checkpoint.state["learning_rates"][kind]
    if checkpoint.spec.counts_clips:
        weights = sum(tensor.numel() for tensor in checkpoint.students.values())
        return StudentScores(params=weights, learning_rate=rate)
    student, _ = load_student(path, kind)
    scores = _scores_of(answers, kind, checkpoint.spec.emotions)
    if scores is None:
        return StudentScores(params=student.params, learning_rate=rate)
    return StudentScores(
        params=student.params,
        learning_rate=rate,
        uar=scores.uar,
        war=scores.war,
        macro_f1=scores.macro_f1,
    )


def score_teacher(name: str, answers: Predictions, emotions: Sequence[str]) -> TeacherScores | None:
    """Return a teacher's scores on the test clips that it predicted; None without any.

    Args:
        name: "speech" or "face".
        answers: The predictions for the test set.
        emotions: The job's emotions, in the order of the predictions.
    """
    scores = _scores_of(answers, f"{name}_teacher", emotions)
    if scores is None:
        return None
    return TeacherScores(
        uar=scores.uar, war=scores.war, macro_f1=scores.macro_f1, clips=scores.clips
    )


def _scores_of(answers: Predictions, model: str, emotions: Sequence[str]) -> Scores | None:
    """Score one model of the predictions; None if it has no prediction for any clip."""
    if model not in answers.probabilities:
        return None
    clips, probabilities = answers.of(model)
    if not clips:
        return None
    labels = np.array([emotions.index(clip.emotion) for clip in clips])
    return score(labels, probabilities.argmax(axis=1))
