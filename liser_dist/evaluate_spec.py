"""What is evaluated: a student or a teacher, on labelled shards."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from liser_dist.fields import EMOTIONS, Count, Folds, Place, Spec
from liser_dist.resources_spec import ResourcesSpec
from liser_dist.spec import ClipSpec
from liser_dist.teacher_spec import AnyTeacher


class LabelledSpec(Spec):
    labelled: Place


class EvaluateSpec(Spec):
    """One model on one labelled set."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "scores"
    emotions: tuple[str, ...] = Field(EMOTIONS, min_length=2)
    data: LabelledSpec
    clip: ClipSpec | None = Field(
        None, description="not given, a student's own; of other models, a job's default"
    )
    model: AnyTeacher = Field(
        description="`kind: student` with a checkpoint, or a teacher as in a job's spec"
    )
    batch_size: Count = Field(32, description="clips the model sees at once")
    folds: Folds | None = Field(None, description="scores by fold of speakers, too")
    resamples: Count = Field(2000, description="of the speakers, for the intervals")
    resources: ResourcesSpec = ResourcesSpec()
    output: Place = "runs"
