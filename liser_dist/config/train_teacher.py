"""The spec of a teacher's training: labelled shards, a backbone, and how much of it is tuned."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from liser_dist.config.base import EMOTIONS, Count, Place, PlaceOrName, Spec, Weight
from liser_dist.config.resources import ResourcesSpec
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import check_emotions


class TeacherDataSpec(Spec):
    """The labelled shard sets: folders or s3:// prefixes that hold WebDataset shards (*.tar)."""

    labelled: Place = Field(description="Shards of the labelled clips to train on.")
    validation: Place | None = Field(
        None,
        description=(
            "Labelled shards on which the best epoch is chosen. Their speakers must be in no "
            "other set. null: a fraction of the speakers of `labelled` is set aside."
        ),
    )
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="Fraction of the labelled speakers set aside if `validation` is not given.",
    )
    test: Place | None = Field(
        None,
        description="Labelled shards on which the finished teacher is scored, once. Their speakers "
        "must be in no other set. null: no test scores.",
    )


class TuneSpec(Spec):
    """How the backbone is tuned after a head has been fitted on the frozen backbone."""

    layers: Literal["none", "all"] | Count = Field(
        "none",
        description="Which layers of the backbone are tuned: `none`, `all`, or how many of the "
        "last ones.",
    )
    epochs: Count = Field(20, description="Maximum number of epochs of tuning.")
    patience: Count = Field(
        4, description="Training stops after this many epochs without a better validation UAR."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-5, description="Peak learning rate of AdamW."
    )
    weight_decay: Weight = Field(0.01, description="Weight decay of AdamW.")


class TrainTeacherSpec(Spec):
    """The training of a teacher: a head on a weighting of a backbone's layers, then fine-tuning."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        "teacher", description="Name of the job. Its runs are `output`/`name`/001, 002 and so on."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Seed of all that is random: the validation speakers, the order of clips."
    )
    emotions: tuple[str, ...] = Field(
        EMOTIONS,
        min_length=2,
        description="The emotions that the teacher tells apart, in order. Clips with another label "
        "are left out.",
    )
    data: TeacherDataSpec
    clip: ClipSpec = ClipSpec()
    backbone: PlaceOrName = Field(
        description="An audio, image or video model: a Hugging Face folder that every node can "
        "read, or a name on the Hugging Face hub."
    )
    tune: TuneSpec = TuneSpec()
    balanced: bool = Field(
        True,
        description="Every emotion has the same weight in the loss, however many clips it has.",
    )
    workers: Count = Field(1, description="Number of train workers.")
    batch_size: Count = Field(16, description="Number of clips per step, over all workers.")
    resources: ResourcesSpec = ResourcesSpec()
    output: Place = Field(
        "runs", description="Folder or s3:// prefix in which the folders of runs are made."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_emotions(self.emotions)
        self.resources.check_worker_gpus(self.workers, "workers")
        return self
