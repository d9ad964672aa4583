"""Compares exported models with torch, scores them on labelled clips, and times them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import TeacherSpec
from liser_dist.errors import one_line
from liser_dist.evaluation.assess import DetailedScores, assess
from liser_dist.export.footprint import Footprint, measure_student, measure_teacher
from liser_dist.export.predict import DEFAULT_HOP_S, ExportedStudent
from liser_dist.records import Clip, Example, to_floats
from liser_dist.students.models import Student

logger = logging.getLogger(__name__)

_Floats = NDArray[np.float32]


def compare_outputs(
    student: Student, models: Sequence[ExportedStudent], segments: Iterable[_Floats]
) -> list[float]:
    """Return, for each model, the largest difference from torch in any probability.

    Args:
        student: The student in torch.
        models: The exported models.
        segments: Audio [samples], of any lengths.
    """
    largest = [0.0] * len(models)
    for audio in segments:
        waveform = torch.from_numpy(audio)[None]
        with torch.inference_mode():
            frames = student.features.frames(torch.tensor([len(audio)]))
            logits = student.encode(student.features(waveform), frames).logits
        expected = torch.softmax(logits, dim=1).numpy()
        for number, model in enumerate(models):
            probabilities, _ = model.infer(audio[None])
            difference = float(np.abs(probabilities - expected).max())
            largest[number] = max(largest[number], difference)
    return largest


def score_exports(
    models: Sequence[ExportedStudent], clips: Iterable[Clip], emotions: Sequence[str],
    resamples: int,
) -> list[DetailedScores | None]:  # fmt: skip
    """Return the scores of each model on labelled clips; None for each without clips.

    Groups of clips are left out of the scores, because an export must not name speakers.
    """
    examples: list[Example] = []
    outputs: list[list[_Floats]] = [[] for _ in models]
    for clip in clips:
        examples.append(Example(**clip.provenance(), **clip.labels()))
        for model, output in zip(models, outputs, strict=True):
            output.append(model.infer(to_floats(clip.waveform)[None])[0])
    if not examples:
        return [None] * len(models)
    all_scores = (
        assess(examples, np.concatenate(output), emotions, {}, resamples) for output in outputs
    )
    no_groups: dict[str, Any] = {"by_speaker": {}, "by_intensity": {}, "by_fold": {}}
    return [scores.model_copy(update=no_groups) for scores in all_scores]


def measure_footprints(
    folder: Path,
    teachers: Mapping[str, TeacherSpec],
    emotions: Sequence[str],
    spec: ClipSpec,
    windows: Sequence[Clip],
) -> dict[str, Footprint]:
    """Measure size, speed and memory of the exported models and of the teachers.

    A teacher is left out if it is a mock, if no window shows it anything, or if it cannot be
    loaded any more, which is logged.

    Args:
        folder: The exported folder.
        teachers: Specs of the teachers to measure, by modality.
        emotions: Emotions of the run.
        spec: Clip settings of the run.
        windows: Clips with a full window of audio each.
    """
    hop_s = min(DEFAULT_HOP_S, spec.window_s)
    footprints = {
        "model.onnx": measure_student(folder, False, windows, hop_s),
        "model.int8.onnx": measure_student(folder, True, windows, hop_s),
    }
    for name, teacher in teachers.items():
        clips = [clip for clip in windows if clip.has_face.any()] if name == "face" else windows
        if teacher.kind == "mock" or not clips:
            continue
        try:
            footprint = measure_teacher(teacher, emotions, spec, clips, hop_s)
        except Exception as error:  # from any library of a teacher; the export does not need it
            logger.warning(
                "measuring the %s teacher failed: %s; the export continues without this teacher's "
                "size and speed",
                name, one_line(error),
            )  # fmt: skip
        else:
            footprints[f"{name} teacher"] = footprint
    return footprints
