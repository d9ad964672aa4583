"""What a teacher's training is: labelled shards, a backbone, how much of it is tuned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from liser_dist.fields import EMOTIONS, Count, Place, Spec
from liser_dist.resources_spec import ResourcesSpec
from liser_dist.spec import ClipSpec


class TeacherDataSpec(Spec):
    labelled: Place
    validation: Place | None = Field(
        None, description="of speakers of its own; not given, some of the labelled ones are"
    )
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="of the labelled speakers, where `validation` is not given"
    )
    test: Place | None = Field(None, description="of speakers of its own; scored once")


class TuneSpec(Spec):
    """What is done to the backbone when the head has been fitted on it as it is."""

    layers: Literal["none", "all"] | Count = Field(
        "none", description="none of its layers, all, or the last so many"
    )
    epochs: Count = 20
    patience: Count = Field(4, description="epochs without a better UAR on the validation set")
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class TrainTeacherSpec(Spec):
    """A head on a learned weighting of a backbone's layers, and the backbone tuned or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "teacher"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    emotions: tuple[str, ...] = Field(EMOTIONS, min_length=2)
    data: TeacherDataSpec
    clip: ClipSpec = ClipSpec()
    backbone: Place = Field(description="a Hugging Face folder or hub name: audio, image or video")
    tune: TuneSpec = TuneSpec()
    balanced: bool = Field(True, description="each emotion weighs the same, however often it is")
    workers: Count = 1
    batch_size: Count = Field(16, description="clips a step, over all workers")
    resources: ResourcesSpec = ResourcesSpec()
    output: Place = "runs"
