"""Unlabelled video of people talking in, a tiny speech-emotion model out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from liser_dist.predict import ExportedStudent

__version__ = "0.1.0"


def load_student(folder: str | Path, int8: bool = False) -> ExportedStudent:
    """A student that `jobs/export.py` wrote, ready to answer: `.predict(FILE)`.

    Raises predict.InputError where the folder is none.
    """
    from liser_dist.predict import ExportedStudent  # late: ONNX Runtime is heavy

    return ExportedStudent(folder, int8)
