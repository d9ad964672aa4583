"""Student or teacher -> scores on labelled clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liser_dist.batches import Batcher
from liser_dist.records import Example
from liser_dist.students import Student

ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares, 0 to 1."""

    uar: float  # unweighted average recall: the mean over emotions of the share found
    war: float  # weighted accuracy: the share of clips that are right
    macro_f1: float
    clips: int


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Labelled clips as students see them, without augmentation."""

    mel: Tensor  # [clips, frames, mels]
    frames: Tensor  # [clips]
    faces: Tensor  # [clips, n, px, px]
    seen: Tensor  # [clips, n]
    labels: NDArray[np.int64]  # [clips]

    @classmethod
    def of(cls, clips: Sequence[Example], batcher: Batcher) -> LabelledSet:
        parts = [
            batcher.heard(clips[start : start + ROWS_AT_ONCE])
            for start in range(0, len(clips), ROWS_AT_ONCE)
        ]
        return cls(
            torch.cat([mel for mel, _ in parts]),
            torch.cat([frames for _, frames in parts]),
            *batcher.seen(clips),
            np.array([batcher.emotions.index(clip.emotion) for clip in clips]),
        )


def score_student(student: Student, labelled: LabelledSet) -> Scores:
    """A student on labelled clips."""
    return score(labelled.labels, answer_student(student, labelled).argmax(axis=1))


def answer_student(student: Student, labelled: LabelledSet) -> NDArray[np.float32]:
    """A student's logits [clips, emotions]; it is in evaluation mode meanwhile."""
    device = next(student.parameters()).device
    training = student.training
    student.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(labelled.mel), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            parts = (labelled.mel, labelled.frames, labelled.faces, labelled.seen)
            output = student.encode(*(part[rows].to(device) for part in parts))
            found.append(output.logits.cpu().numpy())
    student.train(training)
    return np.concatenate(found)


def logits_of(clips: Sequence[Example], name: str, known: Sequence[bool]) -> NDArray[np.float32]:
    """[clips, emotions] what a teacher said of each; -inf for emotions that it does not know.

    NaN for a clip of which it said nothing.
    """
    nothing = np.full(len(known), np.nan, np.float32)
    said = [getattr(clip, f"{name}_logits").astype(np.float32) for clip in clips]
    return np.where(np.asarray(known), np.stack([s if s.size else nothing for s in said]), -np.inf)


def score(labels: NDArray[np.int64], found: NDArray[np.int64]) -> Scores:
    """Labels and answers [clips], as numbers of emotions. Emotions without a label do not count."""
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    present = np.unique(labels)
    macro = {"labels": present, "average": "macro", "zero_division": 0.0}
    return Scores(
        uar=float(recall_score(labels, found, **macro)),
        war=float(accuracy_score(labels, found)),
        macro_f1=float(f1_score(labels, found, **macro)),
        clips=len(labels),
    )
