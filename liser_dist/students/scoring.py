"""Scores students and teachers on labelled clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liser_dist.records import Example
from liser_dist.students.batches import Batcher
from liser_dist.students.models import Student

_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores on labelled clips, from 0 to 1."""

    uar: float  # unweighted average recall: the mean of the emotions' recalls
    war: float  # weighted accuracy: the share of clips that are right
    macro_f1: float
    clips: int


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """The student's input of labelled clips, without augmentation, and their labels."""

    mel: Tensor  # [clips, frames, mels]
    frames: Tensor  # [clips]
    faces: Tensor  # [clips, n, px, px]
    has_face: Tensor  # [clips, n]
    labels: NDArray[np.int64]  # [clips]

    @classmethod
    def from_examples(cls, clips: Sequence[Example], batcher: Batcher) -> LabelledSet:
        """Compute the input of clips with an `emotion` of the job."""
        parts = [
            batcher.audio_input(clips[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(clips), _ROWS_AT_ONCE)
        ]
        return cls(
            torch.cat([mel for mel, _ in parts]),
            torch.cat([frames for _, frames in parts]),
            *batcher.face_input(clips),
            np.array([batcher.emotions.index(clip.emotion) for clip in clips]),
        )


def score_student(student: Student, labelled: LabelledSet) -> Scores:
    """Score a student on labelled clips."""
    return score(labelled.labels, predict_logits(student, labelled).argmax(axis=1))


def predict_logits(student: Student, labelled: LabelledSet) -> NDArray[np.float32]:
    """Return a student's logits [clips, emotions]; it is in evaluation mode meanwhile."""
    device = next(student.parameters()).device
    training = student.training
    student.eval()
    logits = []
    with torch.inference_mode():
        for start in range(0, len(labelled.mel), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            parts = (labelled.mel, labelled.frames, labelled.faces, labelled.has_face)
            output = student.encode(*(part[rows].to(device) for part in parts))
            logits.append(output.logits.cpu().numpy())
    student.train(training)
    return np.concatenate(logits)


def teacher_logits(
    clips: Sequence[Example], name: str, known: Sequence[bool]
) -> NDArray[np.float32]:
    """Return a teacher's logits [clips, emotions] from the targets of clips.

    They are -inf for emotions that it does not know, and NaN for clips without its targets.
    """
    nothing = np.full(len(known), np.nan, np.float32)
    logits = [clip.targets_from(name).logits.astype(np.float32) for clip in clips]
    rows = np.stack([row if row.size else nothing for row in logits])
    return np.where(np.asarray(known), rows, -np.inf)


def score(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Scores:
    """Score predictions against labels; emotions without a labelled clip do not count.

    Args:
        labels: [clips] index of the emotion.
        predicted: [clips] likewise.
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    present = np.unique(labels)
    macro = {"labels": present, "average": "macro", "zero_division": 0.0}
    return Scores(
        uar=float(recall_score(labels, predicted, **macro)),
        war=float(accuracy_score(labels, predicted)),
        macro_f1=float(f1_score(labels, predicted, **macro)),
        clips=len(labels),
    )
