"""Loads the best student saved in a checkpoint, ready to make predictions."""

from __future__ import annotations

from safetensors.torch import load as load_tensors

from liser_dist.config.student import EmotionStudent
from liser_dist.errors import CheckpointError
from liser_dist.runs.checkpoint_files import (
    read_checkpoint_spec,
    read_digests,
    read_verified,
)
from liser_dist.students.models import Student


def load_student(place: str, kind: str = "distilled") -> tuple[Student, tuple[str, ...]]:
    """Load the best student of a checkpoint, in evaluation mode.

    Args:
        place: The checkpoint's folder.
        kind: "distilled", or a comparison of the run.

    Returns:
        The student, and the emotions in the order of its logits.

    Raises:
        CheckpointError: the checkpoint cannot be read, has no such student, or its student counts
            clips and predicts nothing.
    """
    digests = read_digests(place)
    spec = read_checkpoint_spec(place, digests)
    tensors = load_tensors(read_verified(place, "best.safetensors", digests))
    weights = {
        name.removeprefix(f"{kind}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{kind}/") and "/projections." not in name
    }
    if not weights:
        kinds = ", ".join(sorted({name.partition("/")[0] for name in tensors}))
        raise CheckpointError(
            f"the checkpoint {place} has no student {kind!r}: give one of {kinds}"
        )
    if not isinstance(spec.student, EmotionStudent):
        raise CheckpointError(
            f"the student of {place} is of `kind: counting` and predicts no emotions: give another "
            "checkpoint"
        )
    student = Student(spec.student, len(spec.emotions), spec.clip.sample_rate_hz)
    student.load_state_dict(weights)
    return student.eval(), spec.emotions
