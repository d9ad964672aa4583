"""Defines the students of a run, what each of them learns from, and the controls.

The run's own student is "distilled"; each comparison (`compare` in the spec) adds one student. All
of them learn from the same batches. Controls are comparisons in which clips get the targets of
other clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from liser_dist.config.student import LossSpec
from liser_dist.records import TEACHERS
from liser_dist.students.batches import StudentBatch

DISTILLED = "distilled"
ChangeTargets = Callable[[StudentBatch, Sequence[str], torch.Generator], StudentBatch]


@dataclass(frozen=True, slots=True)
class Variant:
    """One student in training: what it learns from, and at which learning rate."""

    kind: str  # "distilled", or the name of a comparison
    learning_rate: float
    loss: LossSpec
    teachers: Sequence[str] = TEACHERS  # whose targets it gets
    second_loss: LossSpec | None = None  # in the second half of the training, if it is another
    change_targets: ChangeTargets | None = None  # of a control

    def loss_at(self, progress: float) -> LossSpec:
        """Return the loss at a share of the training, 0 to 1."""
        return self.second_loss if self.second_loss and progress >= 0.5 else self.loss


def variants_of(
    loss: LossSpec, comparisons: Sequence[str], learning_rates: Sequence[float]
) -> list[Variant]:
    """Return the students of a run: each kind with each learning rate."""
    return [
        Variant(
            kind,
            rate,
            loss_for(teachers_of(kind), loss),
            teachers_of(kind),
            change_targets=shuffle_targets if kind in _CONTROLS else None,
        )
        for kind in (DISTILLED, *comparisons)
        for rate in learning_rates
    ]


# The teachers of comparisons that do not have all of them.
_TEACHERS_OF: Mapping[str, Sequence[str]] = {
    "labels_only": (),
    "speech_only": ("speech",),
    "face_only": ("face",),
    "swapped_faces": ("face",),
}
_CONTROLS = ("swapped_faces", "shuffled_targets")


def teachers_of(kind: str) -> Sequence[str]:
    """Return the names of the teachers from which a kind of student learns."""
    return _TEACHERS_OF.get(kind, TEACHERS)


def loss_for(teachers: Sequence[str], loss: LossSpec) -> LossSpec:
    """Return the terms of a loss that these teachers and labels can serve."""
    return loss.limited_to({*teachers, *(["embeddings"] if teachers else []), "labels"})


def apply_variant(variant: Variant, batch: StudentBatch, draw: torch.Generator) -> StudentBatch:
    """Return the batch as a variant's student gets it: without the targets of other teachers."""
    others = {
        name: teacher.emptied()
        for name, teacher in batch.teachers.items()
        if name not in variant.teachers
    }
    batch = batch.with_teachers(others)
    if variant.change_targets is not None:
        batch = variant.change_targets(batch, variant.teachers, draw)
    return batch


def shuffle_targets(
    batch: StudentBatch, teachers: Sequence[str], draw: torch.Generator
) -> StudentBatch:
    """Move the teachers' targets between the clips that have some; none keeps its own.

    What a control loses is which clip a target belongs to, and nothing else. A clip that is the
    only one of a worker to have targets gets none.
    """
    targets = [batch.teachers[name] for name in teachers]
    has_targets = torch.stack([target.given | target.embedded for target in targets]).any(dim=0)
    rows = has_targets.nonzero()[:, 0].cpu()
    if len(rows) < 2:
        return batch.with_teachers({name: batch.teachers[name].emptied() for name in teachers})
    distance = int(torch.randint(1, len(rows), (1,), generator=draw))
    order = torch.arange(len(has_targets))
    order[rows] = rows.roll(distance)
    moved = batch.rows(order.to(has_targets.device))
    return batch.with_teachers({name: moved.teachers[name] for name in teachers})
