"""Trains tiny speech-emotion models from unlabelled video, distributed on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from liser_dist.export.predict import ExportedStudent

__version__ = "0.1.0"


def load_student(folder: str | Path, int8: bool = False) -> ExportedStudent:
    """Load a student that `jobs/export.py` wrote; `.predict(FILE)` runs it on a file.

    Args:
        folder: the exported folder.
        int8: load the model with 8-bit weights.

    Raises:
        predict.InputError: the folder is not an exported student.
    """
    from liser_dist.export.predict import ExportedStudent  # imported late, as ONNX Runtime is heavy

    return ExportedStudent(folder, int8)
